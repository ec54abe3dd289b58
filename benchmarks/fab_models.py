"""Three posteriors with modes that lie apart, and what is known of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import ssmkit as sk


class Case(NamedTuple):
    """A posterior.

    Attributes:
        program: the program.
        evidence: the engine that scores.
        ys: observations.
        us: inputs, or None.
        label: values by site, with draws in front, to the mode of each draw.
        masses: of the modes.
        log_evidence: of the data, in nats.
    """

    program: Callable
    evidence: Any
    ys: np.ndarray
    us: Any
    label: Callable[[dict[str, Any]], np.ndarray]
    masses: np.ndarray
    log_evidence: float


def signed() -> Any:
    """The sign of a loading."""
    persistence = 0.999 * jnp.tanh(numpyro.sample("a", dist.Normal(0.0, 1.0)))
    loading = numpyro.sample("loading", dist.Normal(0.0, 2.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    one = jnp.ones((1, 1))
    return sk.models.LinearGaussian(
        jnp.zeros(1), one, persistence * one, (1 - persistence**2) * one, loading * one,
        noise**2 * one,
    )  # fmt: skip


class Sticky(sk.StateSpaceModel):
    """Three states that stay with probability 0.9."""

    centres: Any
    scale: Any

    def initial(self, u: Any) -> Any:
        return dist.Categorical(probs=jnp.ones(3) / 3)

    def transition(self, x: Any, u: Any) -> Any:
        return dist.Categorical(probs=(0.05 + 0.85 * jnp.eye(3))[x])

    def emission(self, x: Any, u: Any) -> Any:
        return dist.Normal(self.centres[x], self.scale)


def labelled() -> Any:
    """Labels that can be exchanged."""
    centres = numpyro.sample("centres", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    return Sticky(centres, numpyro.sample("scale", dist.LogNormal(0.0, 1.0)))


class Rotation(sk.StateSpaceModel):
    """A damped rotation of unit variance, seen along one axis; inputs are steps of time."""

    frequency: Any
    damping: Any

    def initial(self, u: Any) -> Any:
        return dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))

    def transition(self, x: Any, u: Any) -> Any:
        angle, decay = self.frequency * u, jnp.exp(-self.damping * u)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        mean = decay * jnp.stack([cos * x[0] - sin * x[1], sin * x[0] + cos * x[1]])
        return dist.MultivariateNormal(mean, scale_tril=jnp.sqrt(1 - decay**2) * jnp.eye(2))

    def emission(self, x: Any, u: Any) -> Any:
        return dist.Normal(x[:1], 0.2).to_event(1)


def aliased() -> Any:
    """A frequency that gaps between bursts leave open."""
    u = numpyro.sample("frequency", dist.Uniform(0.5, 6.0))
    return Rotation(u, numpyro.sample("damping", dist.LogNormal(jnp.log(0.1), 0.7)))


def sign_case(seed: int) -> Case:
    """Two modes of equal mass."""
    truth = sk.program(signed).model_at({"a": 1.5, "loading": 1.5, "noise": 0.5})
    ys = np.array(sk.simulate(seed, truth, 60).observations)
    axes = (jnp.linspace(-3, 5, 70), jnp.linspace(0, 7, 120), jnp.linspace(-4, 2, 80))
    laws = (dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0), dist.Normal(-1.0, 1.0))

    def values(point: Any) -> dict[str, Any]:
        return {"a": point[0], "loading": point[1], "noise": jnp.exp(point[2])}

    log_p, width = on_grid(signed, sk.Kalman(), ys, None, axes, laws, values)
    total = float(jax.nn.logsumexp(log_p) + jnp.log(2 * width))  # the other sign is a mirror
    return Case(signed, sk.Kalman(), ys, None, lambda v: np.asarray(v["loading"]) > 0,
                np.array([0.5, 0.5]), total)  # fmt: skip


def alias_case(seed: int) -> Case:
    """Basins of unequal mass; data are drawn anew until two hold more than a twentieth each."""
    for attempt in range(40):
        case = _alias_case(40 * seed + attempt)
        if np.sort(case.masses)[-2] > 0.05:
            return case
    raise ValueError("no such data")


def _alias_case(seed: int) -> Case:
    steps = np.tile([4.0, 0.3, 0.3], 8)
    truth = Rotation(jnp.asarray(2.5), jnp.asarray(0.1))
    ys = np.array(sk.simulate(seed, truth, len(steps), us=jnp.asarray(steps)).observations)
    axes = (jnp.linspace(0.5, 6.0, 1201)[1:-1], jnp.log(0.1) + 0.7 * jnp.linspace(-4.5, 4.5, 91))
    laws = (dist.Uniform(0.5, 6.0), dist.Normal(jnp.log(0.1), 0.7))

    def values(point: Any) -> dict[str, Any]:
        return {"frequency": point[0], "damping": jnp.exp(point[1])}

    log_p, width = on_grid(aliased, sk.Kalman(), ys, jnp.asarray(steps), axes, laws, values)
    shares = np.asarray(jax.nn.softmax(log_p)).reshape(len(axes[0]), -1).sum(axis=1)
    basins = np.digitize(np.asarray(axes[0]), CUTS)
    masses = np.bincount(basins, weights=shares, minlength=4)
    total = float(jax.nn.logsumexp(log_p) + jnp.log(width))
    return Case(aliased, sk.Kalman(), ys, jnp.asarray(steps),
                lambda v: np.digitize(np.asarray(v["frequency"]), CUTS), masses, total)  # fmt: skip


CUTS = (1.7, 3.3, 4.85)


def label_case(seed: int) -> Case:
    """Six modes of equal mass."""
    truth = Sticky(jnp.array([-3.0, 0.0, 2.5]), jnp.asarray(0.8))
    ys = np.array(sk.simulate(seed, truth, 80).observations)

    def label(values: dict[str, Any]) -> np.ndarray:
        order = np.argsort(np.asarray(values["centres"]), axis=-1)
        codes = order @ np.array([9, 3, 1])
        return np.searchsorted([5, 7, 11, 15, 19, 21], codes)

    return Case(labelled, sk.ForwardBackward(), ys, None, label, np.full(6, 1 / 6),
                ordered_evidence(seed, ys))  # fmt: skip


def on_grid(
    program: Callable, evidence: Any, ys: Any, us: Any, axes: Any, laws: Any, values: Any
) -> tuple[Any, float]:
    """Log posterior, without its constant, on a grid; and the volume of a cell."""

    def one(point: Any) -> Any:
        model = sk.program(program).model_at(values(point))
        value = sk.log_evidence(jax.random.key(0), evidence, model, jnp.asarray(ys), us)
        return value + sum(law.log_prob(a) for law, a in zip(laws, point, strict=True))

    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    log_p = jax.jit(lambda p: jax.lax.map(one, p, batch_size=4096))(points)
    return log_p, float(np.prod([float(a[1] - a[0]) for a in axes]))


def ordered_evidence(seed: int, ys: np.ndarray, count: int = 50_000) -> float:
    """Six times the evidence of centres in order, by draws from a Student law at that mode."""
    engine = sk.NUTS(sk.ForwardBackward(), num_warmup=300, num_samples=1000, num_chains=1)
    found = sk.infer(seed, engine, labelled, ys).params
    centres = np.sort(np.asarray(found["centres"][0]), axis=1)
    points = np.column_stack([centres, np.log(np.asarray(found["scale"][0]))])
    spread = jnp.linalg.cholesky(jnp.asarray(1.3 * np.cov(points.T)))
    law = dist.MultivariateStudentT(6.0, jnp.asarray(points.mean(axis=0)), spread)
    x = law.sample(jax.random.key(seed), (count,))

    def one(x: Any) -> Any:
        model = Sticky(x[:3], jnp.exp(x[3]))
        value = sk.log_evidence(jax.random.key(0), sk.ForwardBackward(), model, jnp.asarray(ys))
        prior = jnp.sum(dist.Normal(0.0, 3.0).log_prob(x[:3])) + dist.Normal(0.0, 1.0).log_prob(
            x[3]
        )
        in_order = (x[0] < x[1]) & (x[1] < x[2])
        return jnp.where(in_order, value + prior - law.log_prob(x), -jnp.inf)

    weights = jax.jit(lambda x: jax.lax.map(one, x, batch_size=2048))(x)
    return float(jax.nn.logsumexp(weights) - jnp.log(count) + jnp.log(6.0))


CASES = {"sign": sign_case, "labels": label_case, "alias": alias_case}
