r"""A state engine in a file of its own: the filter and smoother on a grid, for scalar states.

On points \(g_1 < \dots < g_N\) at distance \(\Delta\),

\[\alpha_t(j) = p(y_t \mid g_j) \sum_i \alpha_{t-1}(i)\, p(g_j \mid g_i)\, \Delta,\]

which is exact up to the spacing of the grid, for any model with a scalar state and densities.

Source: G. Kitagawa (1987), Non-Gaussian state-space modeling of nonstationary time series,
Journal of the American Statistical Association 82.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

import ssmkit as sk
from ssmkit.models.base import abstract_law, input_at


class GridPaths(eqx.Module):
    """The joint law of a path: filtered beliefs and the transitions between them.

    Attributes:
        grid: points ``(N,)``.
        log_filtered: log probabilities of the points given the data so far ``(T, N)``.
        log_transition: log probabilities of the step into each time ``(T, N, N)``, from and to.
    """

    grid: Array
    log_filtered: Array
    log_transition: Array

    def marginals(self):
        """Smoothed log probabilities ``(T, N)``."""

        def back(later, at):
            filtered, transition = at
            joint = filtered[:, None] + transition
            ahead = later - logsumexp(joint, axis=0)
            now = logsumexp(joint + jnp.where(jnp.isfinite(ahead), ahead, -jnp.inf), axis=1)
            return now, now

        last = self.log_filtered[-1]
        steps = (self.log_filtered[:-1], self.log_transition[1:])
        earlier = jax.lax.scan(back, last, steps, reverse=True)[1]
        return jnp.concatenate([earlier, last[None]])

    def sample(self, key, num_paths):
        """Draw whole paths ``(num_paths, T)``, backwards in time."""

        def draw(path_key):
            def back(later, at):
                t, filtered, transition = at
                logits = filtered + transition[:, later]
                i = jax.random.categorical(jax.random.fold_in(path_key, t), logits)
                return i, i

            times = jnp.arange(len(self.log_filtered))
            last = jax.random.categorical(
                jax.random.fold_in(path_key, times[-1]), self.log_filtered[-1]
            )
            steps = (times[:-1], self.log_filtered[:-1], self.log_transition[1:])
            earlier = jax.lax.scan(back, last, steps, reverse=True)[1]
            return self.grid[jnp.append(earlier, last)]

        return jax.vmap(draw)(jax.random.split(key, num_paths))


@dataclasses.dataclass(frozen=True)
class GridFilter:
    """Filter, smoother, path draws and evidence for scalar states, on a uniform grid.

    Args:
        low: first point of the grid, in units of the state.
        high: last point; what lies outside the grid counts as impossible.
        num_points: number of points.
    """

    low: float
    high: float
    num_points: int = 200

    evidence_kind = "approximate"  # exact up to the grid

    def check(self, model, us):
        """Refuse, before compilation, what would come out wrong."""
        start = abstract_law(lambda: model.at(0).initial(input_at(us, 0)))
        if isinstance(start, sk.Diffuse | sk.SingularNormal) or start.event_shape != ():
            raise sk.errors.EngineError(
                "GridFilter needs a scalar state with a density.",
                got=f"{type(start).__name__} of event shape {start.event_shape}",
                expected="a proper initial law of event shape ()",
                fix="sk.Kalman() for linear Gaussian models",
            )

    def log_evidence(self, key, model, ys, us, mask):
        """Log evidence in nats; differentiable in the model."""
        return jnp.sum(self._filter(model, ys, us, mask)["log_likelihood"])

    def infer(self, key, model, ys, us, mask, keep):
        """Everything about the states of one series at one parameter value."""
        steps = self._filter(model, ys, us, mask)
        last = steps["filtered"][-1]
        parts = {
            "log_evidence": jnp.sum(steps["log_likelihood"]),
            "final": self._belief(last),
            "carry": last,
        }
        if keep == "final":
            return parts
        paths = GridPaths(self._grid(), steps["filtered"], steps["transition"])
        return parts | {
            "log_likelihood": steps["log_likelihood"],
            "predicted": self._belief(steps["predicted"]),
            "filtered": self._belief(steps["filtered"]),
            "states": (self._belief(paths.marginals()), paths),
        }

    def forecast(self, key, model, carry, start, num_steps, us):
        """Beliefs about the next states, and one draw of the observation at each point."""
        grid = self._grid()

        def ahead(log_belief, at):
            t, u = at
            log_belief = _move(log_belief, self._transition(model, t, u))
            step_keys = jax.random.split(jax.random.fold_in(key, t), self.num_points)

            def emit(emit_key, x):
                return model.at(t).emission(x, u).sample(emit_key)

            return log_belief, (log_belief, jax.vmap(emit)(step_keys, grid))

        times = start + jnp.arange(num_steps)
        beliefs, draws = jax.lax.scan(ahead, carry, (times, us))[1]
        return {
            "states": self._belief(beliefs),
            "observations": sk.Particles(draws, beliefs, draws.shape[2:]),
        }

    def _grid(self):
        return jnp.linspace(self.low, self.high, self.num_points)

    def _belief(self, log_probabilities):
        values = jnp.broadcast_to(self._grid(), log_probabilities.shape)
        return sk.Particles(values, log_probabilities, ())

    def _transition(self, model, t, u):
        grid = self._grid()
        spacing = (self.high - self.low) / (self.num_points - 1)
        # scored inside vmap: a law returned out of it would have lost its batch
        row = jax.vmap(lambda x: model.at(t).transition(x, u).log_prob(grid))
        return row(grid) + jnp.log(spacing)

    def _filter(self, model, ys, us, mask):
        grid = self._grid()

        def step(log_belief, at):
            t, u, y, observed = at
            law = model.at(0).initial(u)
            start = jax.nn.log_softmax(jax.vmap(law.log_prob)(grid))
            transition = self._transition(model, t, u)
            predicted = jnp.where(t == 0, start, _move(log_belief, transition))

            def emission(x):
                return sk.observed_log_prob(model.at(t).emission(x, u), y, observed)

            joint = predicted + jax.vmap(emission)(grid)
            log_likelihood = logsumexp(joint)
            filtered = joint - log_likelihood
            report = {
                "log_likelihood": log_likelihood,
                "predicted": predicted,
                "filtered": filtered,
                "transition": transition,
            }
            return filtered, report

        begin = jnp.full(grid.shape, -jnp.log(self.num_points))
        return jax.lax.scan(step, begin, (jnp.arange(ys.shape[0]), us, ys, mask))[1]


def _move(log_belief, log_transition):
    """One prediction: sum over where the state came from."""
    return logsumexp(log_belief[:, None] + log_transition, axis=0)
