"""The Gaussian filter, smoother and path draws against one dense joint normal."""

import functools

import dense
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

from ssmkit.kalman.affine import exact, sigma_points, taylor
from ssmkit.kalman.filter import gaussian_kernel
from ssmkit.kalman.forms import FORMS
from ssmkit.kalman.run import (
    beliefs,
    filter_series,
    log_evidence_of,
    log_likelihood,
    predicted_observations,
)
from ssmkit.kalman.smoother import backward_kernels
from ssmkit.models.base import StateSpaceModel, simulate_series
from ssmkit.models.distributions import Diffuse, SingularNormal

LENGTH = 6


class Linear(StateSpaceModel):
    """A linear-Gaussian model; inputs move both means and stretch the transition matrix."""

    initial_mean: jax.Array
    initial_factor: jax.Array
    directions: jax.Array | None
    matrix: jax.Array
    factor: jax.Array
    emission_matrix: jax.Array
    noise: jax.Array  # standard deviations (M,), or a covariance (M, M)

    def initial(self, u):
        mean = self.initial_mean if u is None else self.initial_mean + u[0]
        if self.directions is not None:
            return Diffuse(mean, self.initial_factor, self.directions)
        return SingularNormal(mean, self.initial_factor)  # its rank is for the values to say

    def transition(self, x, u):
        matrix = self.matrix if u is None else self.matrix * (1 + 0.2 * u[1])
        mean = matrix @ x + 0.1 + (0.0 if u is None else u[0])
        return SingularNormal(mean, self.factor)

    def emission(self, x, u):
        mean = self.emission_matrix @ x - 0.3 + (0.0 if u is None else u[1])
        if self.noise.ndim == 1:
            return dist.Normal(mean, self.noise).to_event(1)
        return dist.MultivariateNormal(mean, self.noise)


class Varying(Linear):
    """Every matrix has the time in front."""

    def at(self, t):
        pick = {n: getattr(self, n)[t] for n in ("matrix", "factor", "emission_matrix", "noise")}
        return Linear(self.initial_mean, self.initial_factor, self.directions, **pick)


class Level(StateSpaceModel):
    """A scalar random walk plus noise, diffuse; the usual way to write it."""

    level: jax.Array
    noise: jax.Array

    def initial(self, u):
        return Diffuse(jnp.zeros_like(self.level)[None])

    def transition(self, x, u):
        return dist.Normal(x, self.level).to_event(1)

    def emission(self, x, u):
        return dist.Normal(x, self.noise).to_event(1)


class Scalar(StateSpaceModel):
    """Scalar state and observation without any event axis."""

    scale: jax.Array

    def initial(self, u):
        return dist.Normal(0.5, 2 * self.scale)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + 0.1, self.scale)

    def emission(self, x, u):
        return dist.Normal(2 * x, 0.7 * self.scale)


def linear(
    *, varying=False, correlated=False, singular=False, start="proper", size=3, width=2, seed=0
):
    """Draw a model; ``start``: proper, known (rank one), point, partial, one flat or diffuse.

    Shapes depend on the first two arguments and on whether the start is proper alone, so that
    several models share one compiled filter: what is singular or absent is a column of zeros.
    """
    rng = np.random.default_rng(seed)
    lead = (LENGTH,) if varying else ()
    matrix = 0.6 * rng.normal(size=(*lead, size, size)) / np.sqrt(size) + 0.5 * np.eye(size)
    factor = rng.normal(size=(*lead, size, size))
    if singular:  # a companion row and one source of noise
        matrix[..., -1, :] = np.eye(size)[0]
        factor[..., -1, :] = factor[..., 1:] = 0.0
    emission = rng.normal(size=(*lead, width, size))
    spread = rng.normal(size=(*lead, width, width))
    noise = spread @ np.swapaxes(spread, -1, -2) + 0.2 * np.eye(width)
    if not correlated:
        noise = np.sqrt(np.diagonal(noise, axis1=-2, axis2=-1))
    rank = {"proper": size, "known": 1, "partial": 1, "one flat": 2}.get(start, 0)
    initial = rng.normal(size=(size, size)) * (np.arange(size) < rank)
    flat = {"partial": 2, "one flat": 1, "diffuse": size}.get(start)
    directions = None if flat is None else rng.normal(size=(size, size)) * (np.arange(size) < flat)
    kind = Varying if varying else Linear
    parts = (rng.normal(size=size), initial, directions, matrix, factor, emission, noise)
    return kind(*(None if a is None else jnp.asarray(a) for a in parts))


def untouched(directions):
    """A model whose last coordinate starts flat, and is neither seen nor felt by the others."""
    base = linear(correlated=True, seed=5)
    return Linear(
        base.initial_mean,
        base.initial_factor.at[2].set(0.0),
        directions,
        base.matrix.at[:2, 2].set(0.0).at[2, :2].set(0.0),
        base.factor.at[2].set(0.0),
        base.emission_matrix.at[:, 2].set(0.0),
        base.noise,
    )


INPUTS = np.random.default_rng(7).normal(size=(LENGTH, 2))
# forms to run in, inputs, and models that one compiled function serves
CONFIGURATIONS = {
    "independent": (
        ("covariance", "square_root"),
        None,
        {
            "regular": linear(),
            "singular": linear(singular=True, seed=1),
            "known": linear(singular=True, start="known", seed=2),
        },
    ),
    "correlated-flat": (
        ("covariance", "square_root"),
        None,
        {
            "diffuse": linear(correlated=True, start="diffuse"),
            "diffuse-singular": linear(correlated=True, singular=True, start="diffuse", seed=1),
            "partial": linear(correlated=True, start="partial", seed=2),
            "partial-singular": linear(correlated=True, singular=True, start="partial", seed=3),
            "untouched": untouched(directions=jnp.diag(jnp.array([0.0, 0.0, 1.0]))),
        },
    ),
    "varying-correlated-inputs": (
        ("covariance",),
        INPUTS,
        {
            "regular": linear(varying=True, correlated=True),
            "singular": linear(varying=True, correlated=True, singular=True, seed=1),
        },
    ),
    "varying-independent-inputs-flat": (
        ("square_root",),
        INPUTS,
        {
            "one flat": linear(varying=True, start="one flat"),
            "singular": linear(varying=True, singular=True, start="one flat", seed=1),
            "diffuse": linear(varying=True, start="diffuse", seed=2),
        },
    ),
    "large": (
        ("covariance",),
        None,
        {"regular": linear(size=13, width=9)},
    ),
    "level": (("square_root",), None, {"level": Level(jnp.asarray(0.5), jnp.asarray(1.5))}),
    "scalar": (("covariance",), None, {"scalar": Scalar(jnp.asarray(1.3))}),
}
CASES = [
    (name, form, instance)
    for name, (forms, _, instances) in CONFIGURATIONS.items()
    for form in forms
    for instance in instances
]


def pattern(width, *missing):
    mask = np.ones((LENGTH, width), bool)
    for entry in missing:
        mask[entry] = False
    return mask


def patterns(width):
    return {
        "none": pattern(width),
        "rows": pattern(width, 2, 3),
        "coordinates": pattern(width, (1, 0), (3, -1), (4, 0)),
        "first row": pattern(width, 0),
        "last row": pattern(width, -1),
        "everything": pattern(width, slice(None)),
    }


PATTERNS = tuple(patterns(1))


def width_of(model):
    return 1 if not isinstance(model, Linear) else model.emission_matrix.shape[-2]


def data(width):
    return 2 * np.random.default_rng(11).normal(size=(LENGTH, width))


def run(rule, form, model, ys, us, mask):
    """All that the Gaussian filter answers, in one function to compile."""
    kernel = gaussian_kernel(rule, FORMS[form], model, us)
    done = filter_series(kernel, ys, us, mask, keep=True)
    paths = backward_kernels(kernel, done.steps)
    predicted, filtered = beliefs(kernel, done.steps)
    return dense.Reference(
        log_evidence_of(done.state),
        log_likelihood(done.steps),
        predicted,
        filtered,
        paths.marginals(),
        predicted_observations(kernel, done.steps),
        paths,
    )


def evidence(form, model, ys, us=None, mask=None, rule=None):
    kernel = gaussian_kernel(rule or exact(), FORMS[form], model, us)
    return log_evidence_of(filter_series(kernel, ys, us, mask, keep=False).state)


def stack(models):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


@functools.cache
def runs(name, form, dtype="float64"):
    """Every model and every pattern of a configuration in one compiled call."""
    _, us, instances = CONFIGURATIONS[name]
    models, us = jax.tree.map(lambda a: jnp.asarray(a, dtype), (stack(instances.values()), us))
    width = width_of(next(iter(instances.values())))
    masks = np.stack(list(patterns(width).values()))
    ys = jnp.where(masks, jnp.asarray(data(width), dtype), jnp.nan)

    def one(model, y, mask):
        return run(exact(), form, model, y, us, mask)

    by_pattern = jax.vmap(one, in_axes=(None, 0, 0))
    out = jax.jit(jax.vmap(by_pattern, in_axes=(0, None, None)))(models, ys, masks)
    return {
        (n, p): jax.tree.map(lambda a, i=i, j=j: a[i, j], out)
        for i, n in enumerate(instances)
        for j, p in enumerate(PATTERNS)
    }


@functools.cache
def joint(name, instance):
    _, us, instances = CONFIGURATIONS[name]
    return dense.joint(instances[instance], LENGTH, us)


@functools.cache
def expected(name, instance, pattern):
    width = width_of(CONFIGURATIONS[name][2][instance])
    return dense.reference(joint(name, instance), data(width), patterns(width)[pattern])


def assert_agree(got, want, tolerance):
    """Compare all answers; where the truth is flat, variances must be infinite."""
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    scale = max(1.0, abs(want.log_evidence))
    close(got.log_evidence / scale, want.log_evidence / scale, err_msg="log evidence")
    close(got.log_likelihood / scale, want.log_likelihood / scale, err_msg="log likelihood")
    for name in ("predicted", "filtered", "smoothed", "predicted_observations"):
        (mean, cov), (true_mean, true_cov) = getattr(got, name), getattr(want, name)
        finite = np.isfinite(true_mean)
        size = 1.0 + np.abs(true_mean[finite]).max(initial=0.0)
        close(np.asarray(mean)[finite] / size, true_mean[finite] / size, err_msg=f"{name} mean")
        finite = np.isfinite(true_cov)
        np.testing.assert_array_equal(np.isinf(cov), ~finite, err_msg=f"{name} infinite")
        size = 1.0 + np.abs(true_cov[finite]).max(initial=0.0)
        close(np.asarray(cov)[finite] / size, true_cov[finite] / size, err_msg=f"{name} cov")


every_case = pytest.mark.parametrize(("name", "form", "instance"), CASES)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)
every_form = pytest.mark.parametrize("form", FORMS)


@every_case
@every_pattern
def test_every_answer_is_the_dense_one(name, form, instance, pattern):
    got = runs(name, form)[instance, pattern]
    assert_agree(got, expected(name, instance, pattern), 1e-9)
    np.testing.assert_allclose(jnp.sum(got.log_likelihood), got.log_evidence, atol=1e-10)
    if pattern == "everything":
        assert got.log_evidence == 0.0


@pytest.mark.parametrize(
    ("name", "instance"),
    [("independent", "regular"), ("independent", "singular"), ("level", "level")],
)
@every_pattern
def test_square_root_in_float32(name, instance, pattern):
    got = runs(name, "square_root", "float32")[instance, pattern]
    assert {a.dtype for a in jax.tree.leaves(got)} == {np.dtype("float32")}
    assert_agree(got, expected(name, instance, pattern), 1e-4)


@pytest.mark.parametrize("instance", ["diffuse", "partial-singular"])
@pytest.mark.parametrize("pattern", ["none", "coordinates"])
def test_the_diffuse_reference_is_the_limit_of_large_variances(instance, pattern):
    """Checks the reference itself: an expansion in 1 / kappa, extrapolated to zero."""
    model = CONFIGURATIONS["correlated-flat"][2][instance]
    observed, rank = patterns(2)[pattern], np.linalg.matrix_rank(model.directions)
    kappas = 10.0 ** np.arange(4, 7)
    limits = []
    for kappa in kappas:
        law = dense.joint(model, LENGTH, kappa=kappa)
        given = dense.condition(law, data(2), observed)
        evidence = given.log_evidence + 0.5 * rank * np.log(kappa)
        limits.append(np.concatenate([[evidence], given.mean, given.cov.ravel()]))
    fit = np.linalg.solve(np.vander(1 / kappas, increasing=True), np.stack(limits))[0]
    exactly = dense.condition(joint("correlated-flat", instance), data(2), observed)
    answer = np.concatenate([[exactly.log_evidence], exactly.mean, exactly.cov.ravel()])
    np.testing.assert_allclose(fit, answer, rtol=1e-5, atol=1e-5)
    assert abs(limits[0][0] - answer[0]) > 1e-6  # one large kappa is not the limit


def test_diffuse_conventions():
    """Nothing seen: infinite variances. One seen: it fixes the level, at a constant cost."""
    model, ys = Level(jnp.asarray(0.5), jnp.asarray(1.5)), data(1)
    seen = runs("level", "square_root")
    first = seen["level", "none"]
    assert (
        np.isinf(first.predicted[1][0]).all() and np.isinf(first.predicted_observations[1][0]).all()
    )
    # log N(y; 0, kappa + r) + log(kappa) / 2 goes to -log(2 pi) / 2, whatever y and r are
    np.testing.assert_allclose(first.log_likelihood[0], -0.5 * np.log(2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(first.filtered[0][0], ys[0], rtol=1e-12)
    np.testing.assert_allclose(first.filtered[1][0], [[model.noise**2]], rtol=1e-12)
    late = seen["level", "first row"]
    assert late.log_likelihood[0] == 0.0
    assert np.isinf(late.filtered[1][0]).all() and np.isfinite(late.smoothed[1]).all()
    nothing = seen["level", "everything"]
    assert np.isinf(nothing.smoothed[1]).all()
    assert np.isnan(_draw(nothing.path, jax.random.key(0), 2)).all()  # a flat law has no draws


def test_exact_observation_of_a_diffuse_walk():
    """Without emission noise the increments are the data: a closed form."""
    model, ys = Level(jnp.asarray(0.5), jnp.asarray(0.0)), data(1)
    want = stats.norm(0, 0.5).logpdf(np.diff(ys[:, 0])).sum() - 0.5 * np.log(2 * np.pi)
    for form in FORMS:
        np.testing.assert_allclose(jax.jit(evidence, static_argnums=0)(form, model, ys), want)


def test_dropping_a_row_for_one_missing_coordinate_is_wrong():
    mask = patterns(2)["coordinates"]
    got = runs("correlated-flat", "covariance")["partial", "coordinates"]
    rows = np.broadcast_to(mask.all(axis=1, keepdims=True), mask.shape)
    dropped = dense.reference(joint("correlated-flat", "partial"), data(2), rows)
    with pytest.raises(AssertionError):
        assert_agree(got, dropped, 1e-2)
    assert abs(got.log_evidence - dropped.log_evidence) > 0.1


@pytest.mark.parametrize(
    ("name", "instance", "pattern"),
    [
        ("independent", "singular", "coordinates"),
        ("independent", "known", "rows"),
        ("correlated-flat", "diffuse", "none"),
        ("correlated-flat", "partial-singular", "coordinates"),
    ],
)
def test_paths_have_the_dense_mean_and_covariance(name, instance, pattern):
    paths = runs(name, "covariance")[instance, pattern].path
    mean, cov = expected(name, instance, pattern).path
    num_paths = 4000
    draws = np.asarray(_draw(paths, jax.random.key(3), num_paths)).reshape(num_paths, -1)
    variance = np.diagonal(cov)
    error = np.sqrt(variance / num_paths)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 5 * error + 1e-7)
    # about the true mean, the second moment of a normal law has this variance
    error = np.sqrt((np.outer(variance, variance) + cov**2) / num_paths)
    centred = draws - mean
    sample = centred.T @ centred / num_paths
    np.testing.assert_array_less(np.abs(sample - cov), 5 * error + 1e-7)


def test_what_stays_flat_spoils_nothing_else():
    """A diffuse coordinate that no observation touches: infinite variance, no draws, no cost."""
    got = runs("correlated-flat", "covariance")["untouched", "coordinates"]
    proper = dense.joint(untouched(directions=None), LENGTH)
    without = dense.reference(proper, data(2), patterns(2)["coordinates"])
    np.testing.assert_allclose(got.log_evidence, without.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(got.smoothed[0][:, :2], without.smoothed[0][:, :2], rtol=1e-9)
    assert np.isinf(got.smoothed[1][:, 2, 2]).all()
    draws = np.asarray(_draw(got.path, jax.random.key(0), 10))
    assert np.isnan(draws[..., 2]).all() and np.isfinite(draws[..., :2]).all()


@functools.partial(jax.jit, static_argnums=2)
def _draw(paths, key, num_paths):
    return paths.sample(key, num_paths)


@pytest.mark.parametrize(
    ("rule", "form"),
    [
        (exact(), "square_root"),
        (taylor(1), "square_root"),
        (taylor(3), "covariance"),
        (sigma_points(1.0, 2.0, 0.0), "covariance"),
        (sigma_points(0.5, 2.0, 1.0), "square_root"),
    ],
    ids=["exact", "taylor", "iterated", "unscented", "unscented-spread"],
)
def test_every_rule_is_exact_on_a_linear_model(rule, form):
    """Also the runs without a mask: nothing is missing by type."""
    model = linear(correlated=True)
    ys = data(2)
    got = jax.jit(lambda m: run(rule, form, m, ys, None, None))(model)
    assert_agree(got, dense.reference(dense.joint(model, LENGTH), ys, np.ones_like(ys, bool)), 1e-9)


class Constant(StateSpaceModel):
    """Constant velocity in the plane, precise positions: ill-conditioned covariances."""

    step: jax.Array
    acceleration: jax.Array
    noise: jax.Array

    def initial(self, u):
        return dist.Normal(
            jnp.zeros(4, self.step.dtype), 10 * jnp.ones(4, self.step.dtype)
        ).to_event(1)

    def transition(self, x, u):
        one = jnp.array([[1.0, 0.0], [0.0, 1.0]], self.step.dtype)
        move = jnp.kron(one, one + self.step * jnp.array([[0.0, 1.0], [0.0, 0.0]], one.dtype))
        kick = jnp.stack([self.step**2 / 2, self.step])[:, None] * self.acceleration
        return SingularNormal(move @ x, jnp.kron(one, kick))

    def emission(self, x, u):
        return dist.Normal(x[::2], self.noise).to_event(1)


def test_square_root_beats_covariance_in_float32():
    ys = np.cumsum(np.random.default_rng(0).normal(size=(1000, 2)), axis=0) * 0.1

    @functools.partial(jax.jit, static_argnums=0)
    def filtered(form, model, ys):
        kernel = gaussian_kernel(exact(), FORMS[form], model, None)
        done = filter_series(kernel, ys, None, None, keep=True)
        return beliefs(kernel, done.steps)[1]

    def model(dtype):
        return Constant(*(jnp.asarray(a, dtype) for a in (0.05, 0.05, 0.1)))

    mean, cov = filtered("covariance", model(np.float64), jnp.asarray(ys))
    size = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))

    def error(form):
        got = filtered(form, model(np.float32), jnp.asarray(ys, jnp.float32))
        assert got[0].dtype == got[1].dtype == np.float32
        return np.max(np.abs(got[0] - mean) / size)

    errors = {form: error(form) for form in FORMS}
    assert errors["square_root"] < 3e-3
    assert errors["square_root"] < 0.1 * errors["covariance"] or np.isnan(errors["covariance"])


def parametrised(theta, start):
    """A singular, correlated model in which every parameter moves with theta."""
    base = linear(correlated=True, singular=True, start=start, seed=4)
    factor = base.factor * jnp.exp(theta[0])
    lower = jnp.linalg.cholesky(base.noise) + jnp.array([[0.0, 0.0], [1.0, 0.0]]) * theta[1]
    return Linear(
        base.initial_mean + theta[2],
        base.initial_factor * (1 + theta[3]),
        base.directions,
        base.matrix + theta[4] * jnp.outer(jnp.arange(3.0), jnp.ones(3)),
        factor,
        base.emission_matrix * (1 + theta[5]),
        lower @ lower.T * jnp.exp(theta[6]),
    )


@pytest.mark.parametrize(
    ("form", "start"),
    [("square_root", "known"), ("covariance", "partial")],
)
def test_gradients_agree_with_finite_differences(form, start):
    masks = np.stack(list(patterns(2).values()))
    ys = np.where(masks, data(2), np.nan)

    def values(theta):
        model = parametrised(theta, start)
        out = jax.vmap(lambda y, m: evidence(form, model, y, mask=m))(ys, masks)
        return out, out

    both = jax.jit(jax.jacrev(values, has_aux=True))
    theta = jnp.asarray(np.random.default_rng(1).normal(size=7)) * 0.1
    gradient = both(theta)[0]
    steps = 1e-5 * np.eye(7)
    numeric = [(both(theta + s)[1] - both(theta - s)[1]) / 2e-5 for s in steps]
    numeric = np.stack(numeric, axis=1)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gradient[PATTERNS.index("everything")], 0.0)
    assert np.abs(gradient[0]).min() > 1e-3


def test_smoother_gradients_agree_with_finite_differences():
    """Through covariances of rank zero and one, where a plain factorisation gives nan."""
    ys, mask = data(2), patterns(2)["coordinates"]

    def value(theta):
        mean, cov = run(
            exact(), "covariance", parametrised(theta, "point"), ys, None, mask
        ).smoothed
        return jnp.sum(jnp.sin(mean)) + jnp.sum(jnp.sin(cov))

    both = jax.jit(jax.value_and_grad(value))
    theta = jnp.asarray(np.random.default_rng(1).normal(size=7)) * 0.1
    gradient = both(theta)[1]
    steps = 1e-5 * np.eye(7)
    numeric = [(both(theta + s)[0] - both(theta - s)[0]) / 2e-5 for s in steps]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)


def test_rank_deficient_predictions_do_not_spoil_the_smoother():
    """Many random models with a known start: rounding must not pass for information."""
    models = [linear(singular=True, start="known", size=4, width=1, seed=s) for s in range(40)]
    ys, observed = data(1), np.ones((LENGTH, 1), bool)
    laws = [dense.joint(m, LENGTH) for m in models]
    want = np.stack([dense.condition(w, ys, observed).mean[: w.split] for w in laws])
    want = want.reshape(len(models), LENGTH, -1)
    for form in FORMS:
        many = jax.jit(jax.vmap(lambda m, f=form: run(exact(), f, m, ys, None, None).smoothed[0]))
        np.testing.assert_allclose(many(stack(models)), want, rtol=1e-7, atol=1e-7)


class Bent(StateSpaceModel):
    """Scalar, mildly nonlinear in both laws."""

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.8 * x + 0.3 * jnp.sin(x), 0.4)

    def emission(self, x, u):
        return dist.Normal(x + 0.02 * x**3, 0.5)


def grid_smoother(model, ys, grid):
    """Smoothed means and standard deviations by quadrature over the state."""
    step = grid[1] - grid[0]
    initial = np.exp(model.initial(None).log_prob(grid))
    density = np.exp(jax.vmap(lambda x: model.transition(x, None).log_prob(grid))(grid)) * step
    emission = np.exp(jax.vmap(lambda x: model.emission(x, None).log_prob(ys))(grid)).T
    forward, backward = [initial * emission[0]], [np.ones_like(grid)]
    for e in emission[1:]:
        forward.append((forward[-1] @ density) * e)
    for e in emission[:0:-1]:
        backward.append(density @ (e * backward[-1]))
    weights = np.stack(forward) * np.stack(backward[::-1])
    evidence = np.log(weights[-1].sum() * step)
    weights /= weights.sum(axis=1, keepdims=True)
    means = weights @ grid
    return means, np.sqrt(weights @ grid**2 - means**2), evidence


@pytest.mark.parametrize(
    "rule",
    [taylor(1), taylor(5), sigma_points(1.0, 2.0, 0.0)],
    ids=["extended", "iterated", "unscented"],
)
def test_nonlinear_smoother_is_near_the_grid(rule):
    """Means within 0.2 standard deviations, these within 15 per cent, evidence within 0.5."""
    ys = np.asarray(simulate_series(jax.random.key(5), Bent(), 30).observations)
    mean, std, log_evidence = grid_smoother(Bent(), ys, np.linspace(-6, 6, 1201))

    @jax.jit
    def smooth(ys):
        got = run(rule, "covariance", Bent(), ys, None, None)
        return got.smoothed, got.log_evidence

    (means, covariances), got = smooth(ys[:, None])
    assert np.max(np.abs(means[:, 0] - mean) / std) < 0.2
    assert np.max(np.abs(np.sqrt(covariances[:, 0, 0]) / std - 1)) < 0.15
    assert abs(got - log_evidence) < 0.5


class Exponential(StateSpaceModel):
    """One strongly nonlinear look at a normal state."""

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)

    def emission(self, x, u):
        return dist.Normal(jnp.exp(x), 0.3)


def test_iterated_update_reaches_the_mode():
    y = 5.0
    mode = optimize.minimize_scalar(
        lambda x: x**2 / 2 + (y - np.exp(x)) ** 2 / (2 * 0.3**2), (1.0, 2.0), tol=1e-14
    ).x

    @functools.partial(jax.jit, static_argnums=0)
    def update(iterations):
        ys = jnp.full((1, 1), y)
        return run(taylor(iterations), "covariance", Exponential(), ys, None, None).filtered

    mean, cov = update(30)
    np.testing.assert_allclose(mean[0, 0], mode, rtol=1e-7)
    curvature = 1 / (1 + np.exp(2 * mode) / 0.3**2)  # of Gauss and Newton
    np.testing.assert_allclose(cov[0, 0, 0], curvature, rtol=1e-6)
    assert abs(update(1)[0][0, 0] - mode) > 0.5
