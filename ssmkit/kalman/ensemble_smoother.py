r"""The ensemble Kalman smoother: later analyses move the members of earlier times as well.

The analysis at time \(t\) is a linear map \(\Phi_t\) of the members, and it is the same map for
what they were before: \(x_s \leftarrow \Phi_{T-1} \cdots \Phi_{s+1}\, x_s\). The product is
accumulated from the end, for \(N^2 (D + M)\) operations a step.

Source: G. Evensen and P. J. van Leeuwen (2000), An ensemble Kalman smoother for nonlinear dynamics.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.beliefs import Particles
from ssmkit.errors import NotComputed
from ssmkit.kalman.ensemble import EnsembleStep, Transform
from ssmkit.typing import Array, Float, Key


class EnsemblePaths(eqx.Module):
    """The joint law of a path given all data, by the smoothed members.

    Attributes:
        states: ``(T, N, *state)``; a member is a path.
        is_joint: whether all times know the same observations.
    """

    states: Array
    is_joint: bool = eqx.field(static=True)

    def until(self, length: int) -> EnsemblePaths:
        """The law of the first ``length`` states, when nothing after them was observed."""
        return dataclasses.replace(self, states=self.states[:length])

    def sample(self, key: Key, num_paths: int) -> Array:
        """Draw whole paths ``(n, T, *state)``: those of members, by chance.

        Raises:
            NotComputed: the fixed lag has marginals only.
        """
        if not self.is_joint:
            raise NotComputed(
                "the fixed lag gives marginals, and no law of whole paths.",
                fix='sk.EnsembleKalman(smoother="ensemble")',
            )
        index = jax.random.randint(key, (num_paths,), 0, self.states.shape[1])
        return jnp.swapaxes(self.states[:, index], 0, 1)

    def marginals(self) -> Particles:
        """Smoothed marginals per time, as equally weighted particles."""
        weights = jnp.zeros(self.states.shape[:2], self.states.dtype)
        return Particles(self.states, weights, self.states.shape[2:])


def smooth(steps: EnsembleStep, lag: int | None) -> EnsemblePaths:
    """Smooth a kept history.

    Args:
        steps: reports of the filter, with the time in front.
        lag: number of later observations that a state is moved by; None for all of them.
    """
    filtered = steps.filtered.reshape(*steps.filtered.shape[:2], -1)
    if lag is None:
        smoothed = _by_all(filtered, steps.transform)
    else:
        smoothed = _by_some(filtered, steps.transform, lag)
    return EnsemblePaths(smoothed.reshape(steps.filtered.shape), lag is None)


def _by_all(filtered: Float[Array, "T N D"], transforms: Transform) -> Float[Array, "T N D"]:
    count = filtered.shape[1]

    def back(move: Array, at: tuple[Array, Transform]) -> tuple[Array, Array]:
        # ``move`` is the product of all later maps, less the identity
        members, (left, right) = at
        smoothed = members + move @ (members - jnp.mean(members, axis=0))
        return move + (left + move @ left) @ right.T, smoothed

    still = jnp.zeros((count, count), filtered.dtype)
    return jax.lax.scan(back, still, (filtered, transforms), reverse=True)[1]


def _by_some(
    filtered: Float[Array, "T N D"], transforms: Transform, lag: int
) -> Float[Array, "T N D"]:
    length = filtered.shape[0]
    times = jnp.arange(length)

    def ahead(k: Array, members: Array) -> Array:
        later = jax.tree.map(lambda a: a[jnp.minimum(times + k, length - 1)], transforms)
        moved = jax.vmap(lambda transform, x: transform(x))(later, members)
        return jnp.where((times + k < length)[:, None, None], moved, members)

    return jax.lax.fori_loop(1, min(lag, length - 1) + 1, ahead, filtered)
