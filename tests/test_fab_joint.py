"""Parameters and states jointly, as noise: against Kalman, a grid and symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.fab_joint import from_noise, noise_size, path_of

LENGTH = 6
ENGINE = sk.FAB(
    flow=sk.learned.CouplingFlow(num_layers=3, width=16),
    num_iterations=250,
    batch_size=128,
    num_temperatures=3,
    buffer=sk.learned.ReplayBuffer(capacity=40, begin=15),
    learning_rate=3e-3,
    num_draws=4000,
    num_check=0,
)


def model_at(scale):
    one = jnp.ones((1, 1))
    return sk.models.LinearGaussian(jnp.zeros(1), one, 0.8 * one, scale**2 * one, one, 0.25 * one)


def program():
    return model_at(numpyro.sample("scale", dist.LogNormal(-0.5, 0.6)))


YS = np.array(sk.simulate(2, model_at(0.6), LENGTH).observations)
YS[3] = np.nan


@pytest.fixture(scope="module")
def found():
    return sk.infer(0, ENGINE, program, YS)


def exact():
    """By a grid over the parameter, and the smoother at each of its points."""
    grid = jnp.linspace(-4, 3, 281)

    def one(z):
        model = model_at(jnp.exp(z))
        value = sk.log_evidence(jax.random.key(0), sk.Kalman(), model, jnp.asarray(YS))
        there = jnp.asarray(~np.isnan(YS))
        states = sk.Kalman().infer(jax.random.key(0), model, jnp.asarray(YS), None, there, "all")
        return value + dist.Normal(-0.5, 0.6).log_prob(z), states["states"][0].mean()

    log_p, means = jax.jit(jax.vmap(one))(grid)
    shares = jax.nn.softmax(log_p)
    log_evidence = jax.nn.logsumexp(log_p) + jnp.log(grid[1] - grid[0])
    return float(log_evidence), float(shares @ jnp.exp(grid)), shares @ means[:, :, 0]


def test_evidence_parameter_and_states(found):
    log_evidence, scale, means = exact()
    assert found.diagnostics["flow_ess"] / ENGINE.num_draws > 0.5
    assert not found.diagnostics["severe"]
    assert abs(float(found.log_evidence) - log_evidence) < 4 * float(found.log_evidence_se)
    shares = jax.nn.softmax(found.params.log_weights[0])
    drawn = found.states.paths.states[:, :, 0]
    for values, truth in ((found.params["scale"][0], scale), *zip(drawn.T, means, strict=True)):
        mean = shares @ values
        error = jnp.sqrt(jnp.sum((shares * (values - mean)) ** 2))
        assert abs(float(mean - truth)) < 4.5 * float(error) < 0.2
    np.testing.assert_allclose(found.states.mean()[:, 0], shares @ drawn, rtol=1e-4)


def test_paths_belong_to_their_parameters(found):
    data = found.to_arviz(num_draws=200)["posterior"]
    scale, paths = np.asarray(data["scale"])[0], np.asarray(data["states"])[0, :, :, 0]
    values, drawn = np.asarray(found.params["scale"][0]), np.asarray(found.states.paths.states)
    rows = [int(np.flatnonzero(values == one)[0]) for one in scale]
    np.testing.assert_allclose(paths, drawn[rows][:, :, 0])
    with pytest.raises(errors.NotComputed, match="no filter"):
        sk.forecast(0, found, 2)


def test_states_alone_at_known_parameters():
    """A law that is no normal one, whose evidence a particle filter knows."""

    class Jumps(sk.StateSpaceModel):
        scale: jax.Array

        def initial(self, u):
            return dist.Laplace(0.0, self.scale)

        def transition(self, x, u):
            return dist.Laplace(0.9 * x, self.scale)

        def emission(self, x, u):
            return dist.Normal(x, 0.5)

    model = Jumps(jnp.asarray(0.5))
    ys = np.array([0.2, -0.1, 1.5, 1.2])
    found = sk.infer(1, ENGINE, model, ys)
    filtered = sk.infer(2, sk.SMC(num_particles=20_000, smoother=None), model, ys)
    error = np.hypot(float(found.log_evidence_se), float(filtered.log_evidence_se))
    assert abs(float(found.log_evidence) - float(filtered.log_evidence)) < 4 * error < 0.2
    assert found.evidence_of == "data given parameters"
    gap = np.abs(found.states.mean()[-1] - filtered.filtered.mean()[-1])
    assert gap < 0.05
    with pytest.raises(errors.NotComputed):
        _ = found.params


@pytest.mark.parametrize(
    "law",
    [
        dist.Normal(1.0, 2.0),
        dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.3], [0.3, 1.0]])),
        dist.Normal(jnp.zeros(3), jnp.arange(1.0, 4.0)).to_event(1),
        dist.Laplace(0.0, 2.0),
        dist.Exponential(2.0),
    ],
)
def test_laws_made_of_noise_are_the_laws(law):
    """The density of what noise becomes: by the change of variables."""
    shape = law.event_shape
    size = max(1, int(np.prod(shape)))
    noise = 0.7 * jax.random.normal(jax.random.key(0), (size,))
    x = from_noise(law, noise)
    assert x.shape == shape
    slope = jax.jacfwd(lambda e: jnp.ravel(from_noise(law, e)))(noise)
    log_det = jnp.linalg.slogdet(slope)[1]
    expected = jnp.sum(jax.scipy.stats.norm.logpdf(noise)) - log_det
    np.testing.assert_allclose(jnp.sum(law.log_prob(x)), expected, rtol=1e-5)


def test_paths_of_noise_are_draws_of_the_model():
    model = model_at(jnp.asarray(0.6))
    noise = jax.random.normal(jax.random.key(3), (4000, 5, 1))
    assert noise_size(model, None) == 1
    paths = jax.jit(jax.vmap(lambda e: path_of(model, None, e)))(noise)[:, :, 0]
    variances = [1.0]
    for _ in range(4):
        variances.append(0.64 * variances[-1] + 0.36)
    error = np.sqrt(2 / 4000) * np.array(variances)
    assert np.all(np.abs(paths.var(axis=0) - np.array(variances)) < 4 * error)


def test_what_is_refused():
    class Waiting(sk.StateSpaceModel):
        shape: jax.Array

        def initial(self, u):
            return dist.Gamma(self.shape, 1.0)

        def transition(self, x, u):
            return dist.Gamma(self.shape, 1.0)

        def emission(self, x, u):
            return dist.Normal(x, 0.5)

    with pytest.raises(errors.EngineError, match=r"Waiting\.initial"):
        sk.infer(0, ENGINE, Waiting(jnp.asarray(2.0)), np.zeros(3))
    with pytest.raises(errors.ShapeError):
        sk.infer(0, ENGINE, program, np.zeros((4, 2)))
    with pytest.raises(errors.EngineError, match="one series"):
        sk.infer(0, ENGINE, program, [np.zeros((4, 1)), np.zeros((5, 1))])
