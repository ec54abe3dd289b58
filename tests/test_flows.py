"""Flows: maps that are inverted, densities that integrate to one, laws that are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from ssmkit.errors import OptionError, ShapeError
from ssmkit.learned import CouplingFlow, PathFlow, path_flow

SMALL = dict(num_layers=2, width=8, num_bins=4)
BUILDERS = {
    "affine": CouplingFlow(**SMALL),
    "spline": CouplingFlow(transform="spline", bound=3.0, **SMALL),
    "student": CouplingFlow(base="student", scale=2.0, act_norm=False, **SMALL),
}
CASES = [("affine", 5), ("spline", 1), ("spline", 2), ("student", 2)]


def perturbed(builder, dim, dtype=jnp.float64, size=0.3):
    """A flow of random numbers; by numpy, which compiles nothing."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: builder.build(key, dim, dtype), jax.random.key(0))
    return jax.tree.map(
        lambda a: jnp.asarray((size * rng.normal(size=a.shape)).astype(a.dtype)), shapes
    )


@jax.jit
def there_and_back(flow, z):
    x, log_det = jax.vmap(flow.forward)(z)
    again, back = jax.vmap(flow.inverse)(x)
    return x, log_det, again, back


@jax.jit
def draws(flow, keys):
    x, log_prob = jax.vmap(flow.sample_and_log_prob)(keys)
    return x, log_prob, jax.vmap(flow.log_prob)(x)


@jax.jit
def log_prob_and_gradients(flow, x):
    """Log densities, their gradients at the points, and that of their sum for the parameters."""

    def total(flow, x):
        values = jax.vmap(flow.log_prob)(x)
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0.0)), values

    (learned, slopes), values = jax.grad(total, (0, 1), has_aux=True)(flow, x)
    return values, slopes, jnp.concatenate([a.ravel() for a in jax.tree.leaves(learned)])


NUM_POINTS = 8  # of all calls, so that they are compiled together


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}", scope="module")
def flow(request):
    """Flows far from their start."""
    name, dim = request.param
    return perturbed(BUILDERS[name], dim)


def test_inverse_and_determinants(flow):
    z = 2 * jax.random.normal(jax.random.key(2), (50, flow.dim))
    x, log_det, again, back = there_and_back(flow, z)
    assert jnp.abs(x - z).max() > 0.5
    np.testing.assert_allclose(again, z, atol=1e-10)
    np.testing.assert_allclose(back, -log_det, atol=1e-10)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda z: flow.forward(z)[0])))(z)
    np.testing.assert_allclose(jnp.linalg.slogdet(jacobian)[1], log_det, atol=1e-9)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_flow_starts_as_its_base(name):
    flow = BUILDERS[name].build(jax.random.key(0), 2)
    z = 2 * jax.random.normal(jax.random.key(2), (50, 2))
    scale = flow.options.scale
    x, log_det, _, _ = there_and_back(flow, z)
    np.testing.assert_allclose(x, scale * z, atol=1e-12)
    np.testing.assert_allclose(log_det, 2 * math.log(scale), atol=1e-12)
    base = dist.StudentT(5.0, 0.0, scale) if name == "student" else dist.Normal(0.0, scale)
    x, log_prob, _ = draws(flow, split(50))
    np.testing.assert_allclose(log_prob, base.log_prob(x).sum(-1), atol=1e-12)


def split(count):
    return jax.random.split(jax.random.key(3), count)


def test_a_draw_comes_with_its_density(flow):
    _, log_prob, again = draws(flow, split(50))
    np.testing.assert_allclose(log_prob, again, atol=1e-9)


def test_every_coordinate_moves_every_other():
    jacobian = jax.jit(lambda flow, z: jax.jacfwd(lambda z: flow.forward(z)[0])(z))
    for dim in (3, 6):
        flow = perturbed(CouplingFlow(4, 8, 1), dim)
        z = np.linspace(-1, 1, dim)
        assert jnp.all(jacobian(flow, z) != 0), dim


def test_single_precision():
    flow = perturbed(BUILDERS["spline"], 2, jnp.float32, size=0.2)
    z = jax.random.normal(jax.random.key(2), (50, 2), jnp.float32)
    x, _, again, _ = there_and_back(flow, z)
    _, log_prob, back = draws(flow, split(50))
    assert x.dtype == log_prob.dtype == back.dtype == jnp.float32
    np.testing.assert_allclose(again, z, atol=1e-4)
    np.testing.assert_allclose(log_prob, back, atol=1e-3)
    assert flow.log_prob(np.zeros(2)).dtype == jnp.float32  # a point of double precision


def grid(flow, widest, count):
    """Points that lie densely at zero, their weights, and the coordinates."""
    s = np.linspace(-np.arcsinh(widest), np.arcsinh(widest), count)
    axis, weight = np.sinh(s), np.cosh(s) * (s[1] - s[0])
    points = np.stack(np.meshgrid(*[axis] * flow.dim, indexing="ij"), -1).reshape(-1, flow.dim)
    weights = np.prod(np.meshgrid(*[weight] * flow.dim, indexing="ij"), 0).ravel()
    return points, weights


@pytest.mark.parametrize(("name", "dim"), [*CASES[1:], ("affine", 1), ("affine", 2)])
def test_densities_integrate_to_one(name, dim):
    flow = perturbed(BUILDERS[name], dim, size=0.2)
    points, weights = grid(flow, 1e3, 4001 if dim == 1 else 801)
    density = jnp.exp(jax.jit(jax.vmap(flow.log_prob))(points))
    assert abs(density @ weights - 1) < 1e-4


def test_gradients_are_finite_wherever_a_point_is(flow):
    bound = flow.options.bound
    ends = jnp.array([-bound, bound, 0.0, 1e-30, 1e6, -1e6, 1e100, 1e6])
    x = jnp.tile(ends[:, None], flow.dim).at[-1, 1:].set(0.0)
    for found in log_prob_and_gradients(flow, x):
        assert jnp.all(jnp.isfinite(found))


def test_splines_are_smooth_at_their_ends():
    flow = perturbed(BUILDERS["spline"], 2, size=0.0)  # points at the ends stay there
    ends = jnp.tile(jnp.array([[3.0, -3.0], [3.0, 0.0]]), (NUM_POINTS // 2, 1))
    values, slopes, learned = log_prob_and_gradients(flow, ends)
    np.testing.assert_allclose(slopes, -ends, atol=1e-9)
    assert jnp.all(jnp.isfinite(values)) and jnp.all(jnp.isfinite(learned))


def test_points_that_are_not_finite_have_no_density_and_spoil_nothing(flow):
    good = jax.random.normal(jax.random.key(2), (NUM_POINTS, flow.dim))
    good = jnp.broadcast_to(good[:1], good.shape)
    bad = good.at[0, 0].set(jnp.nan).at[1, -1].set(jnp.inf)
    values, slopes, learned = log_prob_and_gradients(flow, bad)
    expected, _, all_alike = log_prob_and_gradients(flow, good)
    assert jnp.all(values[:2] == -jnp.inf) and jnp.all(slopes[:2] == 0)
    np.testing.assert_array_equal(values[2:], expected[2:])
    np.testing.assert_allclose(learned, all_alike * (1 - 2 / NUM_POINTS), rtol=1e-9, atol=1e-10)


def test_one_compilation():
    traces = []

    @jax.jit
    def log_prob(flow, x):
        traces.append(1)
        return flow.log_prob(x)

    for seed in range(3):
        builder = CouplingFlow(**SMALL)  # builders that are alike are one
        log_prob(builder.build(jax.random.key(seed), 2), jnp.ones(2))
    assert len(traces) == 1


def test_student_tails():
    keys, df = split(4000), 5.0
    x = draws(BUILDERS["student"].build(jax.random.key(0), 2), keys)[0][:, 0] / 2
    # variance df / (df - 2), and the standard error of a quantile is sqrt(p q / n) / density
    for p in (0.5, 0.9, 0.99):
        quantile = {0.5: 0.0, 0.9: 1.475884, 0.99: 3.364930}[p]
        density = jnp.exp(dist.StudentT(df).log_prob(quantile))
        error = math.sqrt(p * (1 - p) / len(keys)) / density
        assert abs(jnp.quantile(x, p) - quantile) < 4 * error


def learn(flow, draw, steps, rate=1e-2, batch=256):
    """Maximum likelihood on fresh draws of the truth."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(flow, x):
        return -jnp.mean(jax.vmap(flow.log_prob)(x))

    def step(carry, key):
        flow, state = carry
        updates, state = optimiser.update(jax.grad(loss)(flow, draw(key, batch)), state)
        return (optax.apply_updates(flow, updates), state), None

    keys = jax.random.split(jax.random.key(5), steps)
    return jax.jit(lambda f: jax.lax.scan(step, (f, optimiser.init(f)), keys)[0][0])(flow)


def banana(key, count):
    z = jax.random.normal(key, (count, 2))
    return jnp.stack([2 * z[:, 0], 0.5 * z[:, 1] + z[:, 0] ** 2], 1)


def log_banana(x):
    first = dist.Normal(0.0, 2.0).log_prob(x[:, 0])
    return first + dist.Normal(x[:, 0] ** 2 / 4, 0.5).log_prob(x[:, 1])


@pytest.mark.parametrize("name", ["affine", "spline"])
def test_a_banana_is_learned(name):
    builder = CouplingFlow(2, 16, 1, name, num_bins=4)
    flow = learn(builder.build(jax.random.key(0), 2), banana, steps=500)
    x = banana(jax.random.key(6), 10_000)
    gaps = log_banana(x) - jax.jit(jax.vmap(flow.log_prob))(x)  # their mean is the divergence
    assert gaps.mean() < 0.05


class Walk:
    """A linear Gaussian model in its noise, with data: the law of the noise is known."""

    def __init__(self, size, num_steps=5):
        rng = np.random.default_rng(size)
        self.size, self.num_steps = size, num_steps
        self.transition = np.diag(np.linspace(1.0, 0.6, size)) + 0.2 * np.triu(np.ones(size), 1)
        self.scale = np.tril(rng.normal(size=(size, size))) + 0.5 * np.eye(size)
        # x = effect e, path by path
        steps, power = range(num_steps), np.linalg.matrix_power
        zero = np.zeros((size, size))
        rows = [
            [power(self.transition, t - s) @ self.scale if s <= t else zero for s in steps]
            for t in steps
        ]
        self.effect = np.block(rows)
        row, y = self.effect[size - 1 :: size], rng.normal(size=num_steps)
        precision = np.eye(size * num_steps) + row.T @ row / 0.3**2
        self.covariance = np.linalg.inv(precision)
        self.mean = self.covariance @ row.T @ y / 0.3**2

    def flow(self, diagonal=False):
        """The flow that has this law, from the regressions of the noise on its past."""
        size, steps = self.size, self.num_steps
        flow = PathFlow(steps, size, diagonal=diagonal).build(jax.random.key(0), size * steps)
        factor = np.linalg.cholesky(self.covariance)
        blocks = [factor[t : t + size, t : t + size] for t in range(0, size * steps, size)]
        whole = np.zeros_like(factor)
        for t, block in enumerate(blocks):
            whole[t * size : (t + 1) * size, t * size : (t + 1) * size] = block
        weights = np.eye(size * steps) - whole @ np.linalg.inv(factor)
        offset = (np.eye(size * steps) - weights) @ self.mean
        memory = np.linalg.solve(self.scale, self.transition @ self.scale)
        rows = []
        for t, block in enumerate(blocks):
            gain = weights[t * size : (t + 1) * size, (t - 1) * size : t * size]
            gain = gain if t else np.zeros((size, size))
            limit = math.log(path_flow.LARGEST_SCALE)
            raw = limit * np.arctanh(np.log(np.diag(block)) / limit)
            decay = memory - path_flow.DECAY * np.eye(size)
            here = offset[t * size : (t + 1) * size]
            below = block[np.tril_indices(size, -1)]
            rows.append(np.concatenate([here, gain.ravel(), decay.ravel(), raw, below]))
        return flow.__class__(None, None, None, jnp.asarray(rows), size, diagonal)


@pytest.mark.parametrize(("size", "diagonal"), [(1, True), (2, False)])
def test_the_smoothing_law_of_a_linear_model_is_a_path_flow(size, diagonal):
    truth = Walk(size)
    flow = truth.flow(diagonal)
    x, log_prob, again = draws(flow, split(4000))
    exact = dist.MultivariateNormal(truth.mean, truth.covariance)
    np.testing.assert_allclose(log_prob, exact.log_prob(x), atol=1e-9)
    np.testing.assert_allclose(again, log_prob, atol=1e-9)
    errors = np.sqrt(np.diag(truth.covariance) / 4000)
    assert np.all(np.abs(x.mean(0) - truth.mean) < 4.5 * errors)


def path(size):
    return PathFlow(4, size, CouplingFlow(scale=3.0, **SMALL), width=8, num_features=3)


def test_a_path_starts_as_noise_beside_the_parameters():
    size = 9
    flow = path(size).build(jax.random.key(0), 2 + 4 * size)
    x, log_prob, _ = draws(flow, split(NUM_POINTS))
    u, noise = jax.vmap(flow.split)(x)
    assert flow.dim == 2 + 4 * size and noise.shape == (NUM_POINTS, 4, size)
    expected = dist.Normal(0.0, 3.0).log_prob(u).sum(-1) + dist.Normal().log_prob(noise).sum((1, 2))
    np.testing.assert_allclose(log_prob, expected, atol=1e-10)


@pytest.mark.parametrize("size", [2, 9])
def test_a_path_comes_with_its_density_and_finite_gradients(size):
    flow = perturbed(path(size), 2 + 4 * size)
    x, log_prob, again = draws(flow, split(NUM_POINTS))
    np.testing.assert_allclose(log_prob, again, atol=1e-8)
    far = x.at[0].set(1e6).at[1, 0].set(jnp.nan).at[2, -1].set(-jnp.inf)
    values, slopes, learned = log_prob_and_gradients(flow, far)
    assert jnp.all(jnp.isfinite(slopes)) and jnp.all(jnp.isfinite(learned))
    assert np.flatnonzero(values == -jnp.inf).tolist() == [1, 2]


def test_a_path_in_single_precision():
    flow = perturbed(path(2), 10, jnp.float32, size=0.1)
    x, log_prob, again = draws(flow, split(NUM_POINTS))
    assert x.dtype == log_prob.dtype == again.dtype == jnp.float32
    np.testing.assert_allclose(log_prob, again, atol=1e-3)


def test_parameters_and_path_are_learned_together():
    """A level nobody knows under a random walk: the joint law is Gaussian, and e looks at u."""
    num_steps, noise = 6, 0.3
    effect = np.hstack([np.ones((num_steps, 1)), np.tril(np.ones((num_steps, num_steps)))])
    ys = np.array([1.0, 0.4, 1.5, 2.0, 0.7, -0.2])
    covariance = np.linalg.inv(np.eye(7) + effect.T @ effect / noise**2)
    exact = dist.MultivariateNormal(covariance @ effect.T @ ys / noise**2, covariance)
    builder = PathFlow(num_steps, 1, CouplingFlow(**SMALL), width=16, num_features=4)
    start = builder.build(jax.random.key(0), 7)
    flow = learn(start, lambda key, count: exact.sample(key, (count,)), steps=800)
    x = exact.sample(jax.random.key(6), (10_000,))
    gaps = exact.log_prob(x) - jax.jit(jax.vmap(flow.log_prob))(x)
    assert gaps.mean() < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"transform": "cubic"},
        {"base": "cauchy"},
        {"num_layers": 0},
        {"width": 3.5},
        {"depth": 0},
        {"num_bins": 0},
        {"bound": 0.0},
        {"df": -1.0},
        {"scale": (1.0, math.inf)},
        {"scale": [1.0, 1.0]},
    ],
    ids=str,
)
def test_impossible_options_of_couplings_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))) as error:
        CouplingFlow(**options)
    assert "got:" in str(error.value) and "expected:" in str(error.value)


def test_impossible_sizes_are_refused():
    key = jax.random.key(0)
    with pytest.raises(OptionError, match="dim is no size"):
        CouplingFlow().build(key, 0)
    with pytest.raises(OptionError, match="2 scales"):
        CouplingFlow(scale=(1.0, 2.0)).build(key, 3)
    with pytest.raises(OptionError, match="num_steps"):
        PathFlow(0, 1)
    with pytest.raises(OptionError, match="at least 20"):
        PathFlow(10, 2).build(key, 19)
    with pytest.raises(ShapeError, match="one point at a time"):
        perturbed(CouplingFlow(), 2).log_prob(jnp.zeros((5, 2)))


def test_scales_may_differ():
    flow = CouplingFlow(scale=(1.0, 10.0), **SMALL).build(jax.random.key(0), 2)
    expected = dist.Normal(0.0, jnp.array([1.0, 10.0])).log_prob(jnp.ones(2)).sum()
    np.testing.assert_allclose(flow.log_prob(jnp.ones(2)), expected, rtol=1e-12)


def test_builders_are_configurations():
    assert hash(CouplingFlow()) == hash(CouplingFlow()) and CouplingFlow() == CouplingFlow()
    assert repr(CouplingFlow(transform="spline")) == "CouplingFlow(transform='spline')"
    assert hash(PathFlow(3, 1)) == hash(PathFlow(3, 1))
