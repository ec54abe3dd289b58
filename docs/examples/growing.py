r"""A twist, a proposal and an objective in a file of their own, for the Ricker model.

For populations that are counted rarely. Without noise a population grows towards its capacity: let
it, up to the next count,

\[\log\psi_t(x) = \log N(\log y_s;\, g^{s - t + 1}(x), w_{s - t}^2) - \log N(\log y_s;\, m, v^2)\]

with ``s`` the time of the next count, ``g`` the growth of one step, ``m`` and ``v`` the mean and
deviation of simulated states, and a learned width for each number of steps.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import ssmkit as sk
from ssmkit.learned import from_law, own_law

HORIZON = 6  # steps


def next_count(ys, mask):
    """For each time the steps to the next count, and its logarithm."""
    there = jnp.ones(ys.shape, bool) if mask is None else mask

    def back(later, at):
        log_count, is_there = at
        here = jnp.where(is_there, 0, later[0] + 1), jnp.where(is_there, log_count, later[1])
        return here, here

    log_counts = jnp.log(ys + 0.5)
    nothing = jnp.asarray(HORIZON), jnp.zeros((), log_counts.dtype)
    return jax.lax.scan(back, nothing, (log_counts, there), reverse=True)[1]


@dataclasses.dataclass(frozen=True)
class Growing:
    """Builds the twist."""

    amortised = True  # what is learned serves other series

    def build(self, key, setting):
        """Make the arrays: one log width for each number of steps."""
        return GrowingTwist(jnp.full(HORIZON, -1.0, setting.dtype), setting.state)


class GrowingTwist(eqx.Module):
    """The twist, with the widths that are learned."""

    log_widths: jax.Array
    scale: eqx.Module

    def read(self, model, ys, us, mask):
        """Once a series: what is known at each time of the counts from then on."""
        return next_count(ys, mask)

    def log_twist(self, model, x, features):
        """Once a particle: let it grow up to the count, and compare."""
        delay, log_count = features
        for step in range(HORIZON):
            x = jnp.where(step <= delay, model.transition(x, None).mean, x)
        width = jnp.exp(self.log_widths[jnp.minimum(delay, HORIZON - 1)])
        mean, deviation = self.scale.fixed  # not to be learned
        usual = dist.Normal(mean[0], deviation[0])
        log_ratio = dist.Normal(x, width).log_prob(log_count) - usual.log_prob(log_count)
        return jnp.where(delay < HORIZON, log_ratio, 0.0)


@dataclasses.dataclass(frozen=True)
class Towards:
    """Builds the proposal."""

    amortised = True
    needs_density = True  # of the transition

    def build(self, key, setting):
        """Make the arrays: a share of the way and a log width for each number of steps."""
        zeros = jnp.zeros(HORIZON, setting.dtype)
        return TowardsProposal(zeros - 1.0, zeros)


class TowardsProposal(eqx.Module):
    """From where the model goes a share of the way to the next count; shares are learned."""

    logits: jax.Array
    log_widths: jax.Array

    def read(self, model, ys, us, mask):
        """Once a series."""
        return next_count(ys, mask)

    def draw(self, model, before, s, beyond, dtype):
        """How one state is drawn; ``before`` is None at the first time."""
        delay, log_count = s.read.proposal
        index, is_near = jnp.minimum(delay, HORIZON - 1), delay < HORIZON

        def law():
            own = own_law(model, before, s)
            share = jnp.where(is_near, jax.nn.sigmoid(self.logits[index]), 0.0)
            width = jnp.where(is_near, jnp.exp(self.log_widths[index]), 1.0)
            mean = own.mean + share * (log_count - own.mean)
            return dist.Normal(mean, width * jnp.sqrt(own.variance))

        return from_law(law, lambda: own_law(model, before, s), dtype)


@dataclasses.dataclass(frozen=True)
class TwoRuns(sk.objectives.SIXO):
    """The bound of two runs together: the log of their mean evidence is nearer to the truth."""

    def loss(self, key, model, pieces, series):
        """Minus the bound of one series, in nats, and what is told of it."""
        run = super().loss
        losses, told = jax.vmap(lambda k: run(k, model, pieces, series))(jax.random.split(key))
        bound = jax.nn.logsumexp(-losses) - jnp.log(2.0)
        return -bound, jax.tree.map(jnp.mean, told) | {"bound": bound}
