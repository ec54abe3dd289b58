"""The Gaussian filter, smoother and path draws against one dense joint normal."""

import functools

import dense
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

from ssmkit.kalman.affine import exact, sigma_points, taylor
from ssmkit.kalman.filter import gaussian_kernel
from ssmkit.kalman.forms import FORMS
from ssmkit.kalman.run import beliefs, filter_series, log_evidence_of, log_likelihood
from ssmkit.kalman.run import predicted_observations
from ssmkit.kalman.smoother import backward_kernels
from ssmkit.models.base import StateSpaceModel
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
        return SingularNormal(mean, self.initial_factor)

    def transition(self, x, u):
        matrix = self.matrix if u is None else self.matrix * (1 + 0.2 * u[1])
        mean = matrix @ x + 0.1 + (0.0 if u is None else u[0])
        if self.factor.shape[0] > self.factor.shape[1]:
            return SingularNormal(mean, self.factor)
        return dist.MultivariateNormal(mean, self.factor @ self.factor.T)

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
    """Draw a model; ``start`` is proper, known (rank one), partial or diffuse."""
    rng = np.random.default_rng(seed)
    lead = (LENGTH,) if varying else ()
    matrix = 0.6 * rng.normal(size=(*lead, size, size)) / np.sqrt(size) + 0.5 * np.eye(size)
    factor = rng.normal(size=(*lead, size, 1 if singular else size))
    if singular:  # a companion row: the matrix is singular as well
        matrix[..., -1, :] = np.eye(size)[0]
        factor[..., -1, :] = 0.0
    emission = rng.normal(size=(*lead, width, size))
    spread = rng.normal(size=(*lead, width, width))
    noise = spread @ np.swapaxes(spread, -1, -2) + 0.2 * np.eye(width)
    if not correlated:
        noise = np.sqrt(np.diagonal(noise, axis1=-2, axis2=-1))
    rank = {"proper": size, "known": 1, "partial": 1, "diffuse": 0}[start]
    initial = np.tril(rng.normal(size=(size, size))) * (np.arange(size) < rank)
    directions = {"partial": rng.normal(size=(size, 1)), "diffuse": np.eye(size)}.get(start)
    kind = Varying if varying else Linear
    parts = (rng.normal(size=size), initial, directions, matrix, factor, emission, noise)
    return kind(*(None if a is None else jnp.asarray(a) for a in parts))


INPUTS = np.random.default_rng(7).normal(size=(LENGTH, 2))
CONFIGURATIONS = {
    "plain": (linear(), None),
    "correlated-singular": (linear(correlated=True, singular=True), None),
    "varying-correlated": (linear(varying=True, correlated=True), None),
    "inputs-singular-known": (linear(singular=True, start="known"), INPUTS),
    "inputs-correlated-partial": (linear(correlated=True, start="partial"), INPUTS),
    "singular-diffuse": (linear(singular=True, start="diffuse"), None),
    "correlated-diffuse": (linear(correlated=True, start="diffuse"), None),
    "varying-correlated-singular-partial": (
        linear(varying=True, correlated=True, singular=True, start="partial"),
        None,
    ),
    "varying-inputs-diffuse": (linear(varying=True, start="diffuse"), INPUTS),
    "large": (linear(correlated=True, start="partial", size=13, width=9), None),
    "level": (Level(jnp.asarray(0.5), jnp.asarray(1.5)), None),
    "scalar": (Scalar(jnp.asarray(1.3)), None),
}


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


def data(model):
    return 2 * np.random.default_rng(11).normal(size=(LENGTH, width_of(model)))


def run(rule, form, model, ys, us, mask):
    """All that the Gaussian filter answers, in one function to compile."""
    kernel = gaussian_kernel(rule, FORMS[form], model, us)
    done = filter_series(kernel, ys, us, mask, keep=True)
    short = filter_series(kernel, ys, us, mask, keep=False)
    paths = backward_kernels(kernel, done.steps)
    predicted, filtered = beliefs(kernel, done.steps)
    answers = dense.Reference(
        log_evidence_of(done.state),
        log_likelihood(done.steps),
        predicted,
        filtered,
        paths.marginals(),
        predicted_observations(kernel, done.steps),
        None,
    )
    return answers, log_evidence_of(short.state), paths


def run_patterns(rule, form, model, us):
    """Every pattern in one compiled call."""
    masks = np.stack(list(patterns(width_of(model)).values()))
    ys = jnp.where(masks, data(model), jnp.nan)
    if any(a.dtype == jnp.float32 for a in jax.tree.leaves(model)):
        ys = ys.astype(jnp.float32)
    many = jax.jit(lambda m, u: jax.vmap(lambda y, k: run(rule, form, m, y, u, k))(ys, masks))
    out = many(model, us)
    return {n: jax.tree.map(lambda a, i=i: a[i], out) for i, n in enumerate(PATTERNS)}


@functools.cache
def exact_runs(name, form, dtype="float64"):
    model, us = jax.tree.map(lambda a: jnp.asarray(a, dtype), CONFIGURATIONS[name])
    return run_patterns(exact(), form, model, us)


@functools.cache
def expected(name, pattern):
    model, us = CONFIGURATIONS[name]
    return dense.reference(model, data(model), patterns(width_of(model))[pattern], us)


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


every_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)
every_form = pytest.mark.parametrize("form", FORMS)


@every_configuration
@every_form
@every_pattern
def test_every_answer_is_the_dense_one(name, form, pattern):
    got, short, _ = exact_runs(name, form)[pattern]
    want = expected(name, pattern)
    assert_agree(got, want, 1e-9)
    np.testing.assert_allclose(short, want.log_evidence, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(got.log_likelihood), got.log_evidence, atol=1e-10)
    if pattern == "everything":
        assert got.log_evidence == 0.0
