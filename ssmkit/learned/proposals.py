r"""Learned proposals: \(q_t(x_t \mid x_{t-1}, y_{0:T-1})\).

A proposal is an `equinox.Module` with ``read(model, ys, us, mask)``, once a series, to features
with leading axis ``T``, and ``draw(model, before, s, beyond, dtype)``, which says how one state is
drawn: ``s.read.proposal`` are the features of this time, ``beyond(x)`` is the log twist of a state
by all that comes later, or None. A builder is a frozen dataclass with ``build(key, setting)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.learned.apart import draw_apart, leaves_coordinates_apart
from ssmkit.learned.encoders import Recurrent
from ssmkit.learned.heads import small_network
from ssmkit.learned.reading import Scale, Setting
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.distributions import base_distribution, covariance_of, moments
from ssmkit.reprs import call_repr
from ssmkit.smc.proposals import Draw, Linearised, from_law, from_linearised, own_law
from ssmkit.smc.recipes import Step, log_emission
from ssmkit.typing import Array, Float, Inputs, Key, Law, PyTree, Scalar

Beyond = Callable[[Array], Scalar] | None
WIDE = 1.0  # a learned factor starts wider than the states by e


@dataclasses.dataclass(frozen=True, repr=False)
class Gaussian:
    r"""A normal proposal with independent coordinates, from a network.

    \[q_t(x_t) \propto N(x_t;\, \mu, \sigma^2)\; p(x_t \mid x_{t-1}), \qquad
    (\mu, \sigma) = \mathrm{MLP}(x_{t-1}, e_t)\]

    where the transition enters by its moments, which carry no gradient; without ``product`` the
    first factor alone. What the encoder reads makes it a filtering proposal (``Windowed(1)``: the
    next observation) or a smoothing one (`Recurrent`: all to come).

    Args:
        encoder: `Recurrent`, `Windowed`, `PerStep`, or your own builder.
        width: units of a hidden layer.
        depth: hidden layers.
        product: whether to multiply by the transition.

    Source: C. Naesseth et al. (2018), Variational sequential Monte Carlo; D. Lawson et al. (2022).
    """

    encoder: Any = Recurrent()
    width: int = 32
    depth: int = 1
    product: bool = True

    needs_density = True

    __repr__ = call_repr

    @property
    def amortised(self) -> bool:
        """Whether what is learned serves other series."""
        return self.encoder.amortised

    def build(self, key: Key, setting: Setting) -> GaussianProposal:
        """Make the arrays."""
        encoder_key, head_key = jax.random.split(key)
        encoder = self.encoder.build(encoder_key, setting)
        size = setting.state.size
        sizes = (size + 1 + encoder.size, 2 * size)
        network = small_network(head_key, sizes, self.width, self.depth, setting.dtype)
        return GaussianProposal(encoder, network, setting.state, self.product)


class GaussianProposal(eqx.Module):
    """The networks of `Gaussian`."""

    encoder: Any
    network: eqx.nn.MLP
    scale: Scale
    product: bool = eqx.field(static=True)

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """Encode a series."""
        return self.encoder(ys, us, mask)

    def draw(
        self, model: StateSpaceModel, before: Array | None, s: Step, beyond: Beyond, dtype: Any
    ) -> Draw:
        """Draw one state."""

        def law() -> Law:
            size = self.scale.size
            past = jnp.zeros(size, dtype) if before is None else self.scale.clipped(before)
            first = jnp.full(1, before is None, dtype)
            told = self.network(jnp.concatenate([past, first, s.read.proposal]))
            width = jnp.exp(told[size:] + (WIDE if self.product else 0.0))
            mean, deviation = self.scale.fixed
            factor = (mean + deviation * told[:size], deviation * width)
            return combined(factor, own_law(model, before, s), product=self.product)

        return from_law(law, lambda: own_law(model, before, s), dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class PerStepGaussian:
    r"""A normal factor with free numbers for each time, times the transition: for one series.

    \[q_t(x_t) \propto N(x_t;\, \mu_t, \sigma_t^2)\; p(x_t \mid x_{t-1})\]

    Source: C. Naesseth et al. (2018), Variational sequential Monte Carlo.
    """

    amortised = False
    needs_density = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> PerStepProposal:
        """Make the arrays."""
        zeros = jnp.zeros((setting.num_steps, setting.state.size), setting.dtype)
        return PerStepProposal(zeros, zeros + WIDE, setting.state)


class PerStepProposal(eqx.Module):
    """The numbers of `PerStepGaussian`, in units of the scale of the states."""

    location: Float[Array, "T n"]
    log_width: Float[Array, "T n"]
    scale: Scale

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """The numbers of each time."""
        return self.location, self.log_width

    def draw(
        self, model: StateSpaceModel, before: Array | None, s: Step, beyond: Beyond, dtype: Any
    ) -> Draw:
        """Draw one state."""
        location, log_width = s.read.proposal
        mean, deviation = self.scale.fixed

        def law() -> Law:
            factor = (mean + deviation * location, deviation * jnp.exp(log_width))
            return combined(factor, own_law(model, before, s), product=True)

        return from_law(law, lambda: own_law(model, before, s), dtype)


def combined(factor: tuple[Array, Array], own: Law, *, product: bool) -> Law:
    """A normal factor, times the moments of the model's own law, in the shape of the state."""
    location, width = factor
    if product:
        mean, root = jax.lax.stop_gradient(moments(own))
        variance = root**2 if root.ndim == 1 else jnp.diagonal(covariance_of(root))
        share = variance / (variance + width**2)  # of the factor
        location = mean + share * (location - mean)
        width = jnp.sqrt(share) * width
    shape = own.event_shape
    return dist.Normal(location.reshape(shape), width.reshape(shape)).to_event(len(shape))


@dataclasses.dataclass(frozen=True, repr=False)
class Induced:
    r"""The proposal that the twist asks for.

    \[q_t(x_t) \propto p(x_t \mid x_{t-1})\, p(y_t \mid x_t)\, \psi_{t+1}(x_t)\]

    Over a finite state it is computed; under a Gaussian transition it is the normal law around the
    mode, exact where emission and twist are quadratic. Nothing of its own is learned. Where neither
    transition noise, nor emission, nor twist joins coordinates (as `Quadratic` does not when it is
    diagonal), none of its matrices is formed, and many coordinates cost little.

    Args:
        iterations: Newton steps to the mode.
        sees_twist: False leaves the twist out, which then only selects: the right thing where its
            slope is less to be trusted than its level, as that of a network far from its data.

    Source: S. Zhao et al. (2024), Probabilistic inference in language models via twisted SMC.
    """

    iterations: int = 2
    sees_twist: bool = True

    amortised = True

    __repr__ = call_repr

    def build(self, key: Key, setting: Setting) -> InducedProposal:
        """Nothing is learned here."""
        apart = setting.state.size > 1 and leaves_coordinates_apart(setting)
        return InducedProposal(self.iterations, apart, self.sees_twist)


class InducedProposal(eqx.Module):
    """The law of `Induced`.

    Attributes:
        iterations: Newton steps to the mode.
        apart: whether the model leaves the coordinates of the state apart.
        sees_twist: whether the twist counts.
    """

    iterations: int = eqx.field(static=True)
    apart: bool = eqx.field(static=True, default=False)
    sees_twist: bool = eqx.field(static=True, default=True)

    def read(self, model: StateSpaceModel, ys: Array, us: Inputs, mask: Any) -> PyTree:
        """Nothing beyond what the twist has read."""
        return None

    def draw(
        self, model: StateSpaceModel, before: Array | None, s: Step, beyond: Beyond, dtype: Any
    ) -> Draw:
        """Draw one state."""
        beyond = beyond if self.sees_twist else None

        def log_target(x: Array) -> Scalar:
            value = log_emission(model, x, s)
            return value if beyond is None else value + beyond(x)

        def own() -> Law:
            return own_law(model, before, s)

        base = _kind(own)
        separable = beyond is None or getattr(beyond, "separable", False)
        if self.apart and separable and issubclass(base, dist.Normal):
            return draw_apart(self.iterations, own, log_target, dtype)
        if not issubclass(base, dist.CategoricalProbs | dist.CategoricalLogits):
            rule = Linearised(self.iterations)
            return from_linearised(rule, model, before, s, log_target, dtype)

        def law() -> Law:
            here = own()
            count = base_distribution(here).enumerate_support().shape[0]
            states = jnp.arange(count)
            logits = jax.vmap(here.log_prob)(states) + jax.vmap(log_target)(states)
            return dist.Categorical(logits=logits)

        return from_law(law, own, dtype)


def _kind(make: Any) -> type:
    found: list[type] = []
    jax.eval_shape(lambda: found.append(type(base_distribution(make()))))
    return found[0]
