"""What a flow is to learn: a density of a vector, with or without a prior to draw from."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ssmkit.engines.objective import Objective
from ssmkit.models.density import Density
from ssmkit.models.programs import build_with_prior
from ssmkit.models.whitening import Frame, Settled, sample_prior, settle
from ssmkit.typing import Array, Float, Key, PyTree, Scalar


class DensityTarget(eqx.Module):
    """A plain density; nothing is known of where it lies.

    Attributes:
        density: the density.
        dtype: of its argument.
    """

    density: Density
    dtype: Any = eqx.field(static=True)

    has_prior = False

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.density.dim

    def builder(self, flow: Any) -> Any:
        """What builds the flow."""
        return flow

    def log_prob(self, u: Float[Array, " d"]) -> Scalar:
        """Log density in nats."""
        return jnp.asarray(self.density(u), self.dtype)

    def renewed(self, key: Key) -> DensityTarget:
        """Itself: there is no noise in it."""
        return self

    def values(self, u: Float[Array, " d"]) -> dict[str, PyTree]:
        """The draw by name."""
        return {"x": u}


class ProgramTarget(eqx.Module):
    """The posterior of a program's parameters, in coordinates where the prior is white.

    Attributes:
        objective: log evidence and log prior of the parameters.
        frame: where laws without a closed form lie.
        zeros: shapes of the coordinates by site.
        bound: how far out, in standard deviations of the prior, the target is not zero; or None.
    """

    objective: Objective
    frame: Frame
    zeros: dict[str, Array]
    bound: float | None = eqx.field(static=True)

    has_prior = True

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return sum(a.size for a in self.zeros.values())

    @property
    def dtype(self) -> Any:
        """Type of the coordinates."""
        return jnp.result_type(*self.zeros.values())

    def builder(self, flow: Any) -> Any:
        """What builds the flow."""
        return flow

    def _settled(self, u: Float[Array, " d"]) -> Settled:
        return settle(self.objective.target, self.frame, ravel_pytree(self.zeros)[1](u))

    def log_prob(self, u: Float[Array, " d"]) -> Scalar:
        """Log evidence, log prior and log Jacobian, in nats."""
        settled = self._settled(u)
        model, log_prior = build_with_prior(self.objective.target, settled.values)
        value = self.objective.log_evidence(model) + log_prior + settled.log_jacobian
        if self.bound is None:
            return value
        return jnp.where(jnp.all(jnp.abs(u) <= self.bound), value, -jnp.inf)

    def renewed(self, key: Key) -> ProgramTarget:
        """The same target with other noise in its evidence, where there is noise."""
        if self.objective.engine.evidence_kind != "unbiased":
            return self
        return eqx.tree_at(lambda t: t.objective.key, self, key)

    def values(self, u: Float[Array, " d"]) -> dict[str, PyTree]:
        """The sites by name, each on its own scale."""
        return self._settled(u).values

    def log_prior(self, u: Float[Array, " d"]) -> Scalar:
        """Log density of the prior, in nats."""
        return self._settled(u).log_prior

    def sample_prior(self, key: Key) -> Float[Array, " d"]:
        """A draw of the prior."""
        drawn = sample_prior(self.objective.target, self.frame, self.zeros, key)
        return ravel_pytree(drawn)[0]


class Defended(eqx.Module):
    r"""A flow mixed with the prior, \(\tilde q = (1 - \varepsilon)\, q + \varepsilon\, p_0\).

    Whatever the flow's tails, \(p / \tilde q\) is at most the largest likelihood over
    \(\varepsilon\), so that \(p^2 / \tilde q\) has a finite integral.

    Attributes:
        flow: anything with ``sample_and_log_prob(key)`` and ``log_prob(x)``.
        target: has the prior, where ``share`` is not zero.
        share: of the prior.
    """

    flow: Any
    target: Any
    share: float = eqx.field(static=True)

    def sample(self, key: Key) -> Float[Array, " d"]:
        """A draw."""
        if self.share == 0:
            return self.flow.sample_and_log_prob(key)[0]
        which_key, flow_key, prior_key = jax.random.split(key, 3)
        drawn = self.flow.sample_and_log_prob(flow_key)[0]
        other = self.target.sample_prior(prior_key)
        return jnp.where(jax.random.bernoulli(which_key, self.share), other, drawn)

    def log_prob(self, u: Float[Array, " d"]) -> Scalar:
        """Log density, in nats."""
        log_q = self.flow.log_prob(u)
        if self.share == 0:
            return log_q
        log_prior = jnp.log(self.share) + self.target.log_prior(u)
        return jnp.logaddexp(jnp.log1p(-self.share) + log_q, log_prior)
