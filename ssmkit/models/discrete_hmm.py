r"""Hidden Markov models with finitely many states and any emission family.

\[x_0 \sim \pi, \qquad P(x_t = j \mid x_{t-1} = i) = P_{ij}, \qquad y_t \sim p_{x_t}\]

Source: L. R. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
import numpyro.distributions as dist

from ssmkit.errors import ParameterError, ShapeError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import as_float, is_known
from ssmkit.models.rows import row
from ssmkit.models.slices import check_sizes, slice_at
from ssmkit.typing import Array, Float, PyTree

SIZES = {"initial_probs": "K", "transition_probs": "KK"}


class DiscreteHMM(StateSpaceModel):
    r"""A hidden Markov model; the state is an integer in ``0 … K-1``.

    \(x_0 \sim \pi\), \(P(x_t = j \mid x_{t-1} = i) = P_{ij}\), \(y_t \sim p_{x_t}\)

    Args:
        initial_probs: \(\pi\), ``(K,)``.
        transition_probs: \(P\), ``(K, K)`` with rows that sum to one, or ``(T, K, K)``; the
            entry at ``t`` leads into ``x_t``, so that the first is unused.
        emission_law: a numpyro distribution with batch shape ``(K,)``: one law for each state.
            See `categorical`, `normal` and `poisson` for short forms.

    Raises:
        ShapeError: shapes that do not fit together.
        ParameterError: probabilities that do not sum to one.
        ModelError: from ``emission``, for a family that cannot be taken apart by state.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist, ssmkit as sk
        >>> stay = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> laws = dist.StudentT(4.0, jnp.array([0.0, 3.0]), 1.0)
        >>> model = sk.models.DiscreteHMM([0.5, 0.5], stay, laws)
        >>> float(model.emission(1, None).mean)
        3.0

    Source: L. R. Rabiner (1989), Proceedings of the IEEE 77.
    """

    initial_probs: Float[Array, " K"]
    transition_probs: Float[Array, "*T K K"]
    emission_law: dist.Distribution
    varying: tuple[str, ...] = eqx.field(static=True)
    length: int | None = eqx.field(static=True)

    def __init__(
        self, initial_probs: Any, transition_probs: Any, emission_law: dist.Distribution
    ) -> None:
        self.initial_probs = as_float(initial_probs)
        self.transition_probs = as_float(transition_probs)
        self.emission_law = emission_law
        self.varying, self.length = check_sizes(self, SIZES, ("initial_probs",))
        _require_simplex("initial_probs", initial_probs)
        _require_simplex("transition_probs", transition_probs)
        if emission_law.batch_shape != self.initial_probs.shape:
            raise ShapeError(
                "DiscreteHMM: emission_law must be one law for each state.",
                got=f"batch shape {emission_law.batch_shape}",
                expected=f"batch shape {self.initial_probs.shape}",
                fix=".to_event(1) for vector observations, .expand((K,)) for equal laws",
            )

    @classmethod
    def categorical(cls, initial_probs: Any, transition_probs: Any, probs: Any) -> DiscreteHMM:
        """Emit one of ``L`` symbols.

        Args:
            initial_probs: ``(K,)``.
            transition_probs: ``(K, K)`` or ``(T, K, K)``.
            probs: ``(K, L)``, rows that sum to one.

        Example:
            >>> import ssmkit as sk
            >>> stay = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = sk.models.DiscreteHMM.categorical([0.5, 0.5], stay, [[0.7, 0.3], [0, 1]])
            >>> model.num_states
            2
        """
        _require_simplex("probs", probs)
        law = dist.CategoricalProbs(as_float(probs))
        return cls(initial_probs, transition_probs, law)

    @classmethod
    def normal(
        cls, initial_probs: Any, transition_probs: Any, means: Any, scales: Any
    ) -> DiscreteHMM:
        """Emit normal scalars, or vectors with independent coordinates.

        Args:
            initial_probs: ``(K,)``.
            transition_probs: ``(K, K)`` or ``(T, K, K)``.
            means: ``(K,)``, or ``(K, M)`` for vectors.
            scales: standard deviations, ``(K,)``, ``(K, M)`` or a scalar.
        """
        law = dist.Normal(as_float(means), as_float(scales))
        return cls(initial_probs, transition_probs, law.to_event(len(law.batch_shape) - 1))

    @classmethod
    def poisson(cls, initial_probs: Any, transition_probs: Any, rates: Any) -> DiscreteHMM:
        """Emit counts, or vectors of independent counts.

        Args:
            initial_probs: ``(K,)``.
            transition_probs: ``(K, K)`` or ``(T, K, K)``.
            rates: ``(K,)``, or ``(K, M)`` for vectors.
        """
        law = dist.Poisson(as_float(rates))
        return cls(initial_probs, transition_probs, law.to_event(len(law.batch_shape) - 1))

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first state."""
        return dist.CategoricalProbs(self.initial_probs)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the next state."""
        return dist.CategoricalProbs(self.transition_probs[x])

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the observation in state ``x``."""
        return row(self.emission_law, x)

    def at(self, t: int | Array) -> DiscreteHMM:
        """Return the model that rules the step into time ``t``."""
        if not self.varying:
            return self
        arrays = slice_at(self, SIZES, self.varying, self.length, t)
        return DiscreteHMM(**arrays, emission_law=self.emission_law)

    @property
    def num_states(self) -> int:
        """Number of states ``K``."""
        return self.initial_probs.shape[0]

    @property
    def num_steps(self) -> int | None:
        """Number of steps of a time-varying model, else None."""
        return self.length

    @property
    def time_varying(self) -> bool:
        """Whether the transition probabilities change with time."""
        return bool(self.varying)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("state",)


def _require_simplex(name: str, probs: Any) -> None:
    if not is_known(probs):
        return
    values = np.asarray(probs)
    if np.any(values < 0) or not np.allclose(values.sum(axis=-1), 1, atol=1e-5):
        raise ParameterError(
            f"DiscreteHMM: {name} must be probabilities.",
            got=values.tolist(),
            expected="entries ≥ 0 whose last axis sums to one",
            fix=f"{name} / {name}.sum(axis=-1, keepdims=True)",
        )
