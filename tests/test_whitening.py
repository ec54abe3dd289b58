"""Coordinates in which the prior is white: laws, Jacobians, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

import ssmkit as sk
from ssmkit.models.programs import build_with_prior
from ssmkit.models.whitening import frame_of, normal_form, sample_prior, settle

EXACT = {
    "normal": dist.Normal(1.0, 2.0),
    "log-normal": dist.LogNormal(0.5, 0.7),
    "uniform": dist.Uniform(-1.0, 3.0),
    "half-normal": dist.HalfNormal(2.0),
    "half-Cauchy": dist.HalfCauchy(1.5),
    "exponential": dist.Exponential(3.0),
    "Laplace": dist.Laplace(1.0, 2.0),
    "logistic": dist.Logistic(-1.0, 0.5),
}
U = np.array([-6.0, -2.0, -0.3, 0.0, 0.7, 2.5, 6.0])


@pytest.mark.parametrize("name", EXACT)
def test_quantiles_of_a_law(name):
    """The law's own distribution function answers with the normal one."""
    law = EXACT[name]
    x = normal_form(law)(jnp.asarray(U))
    np.testing.assert_allclose(law.cdf(x), jax.scipy.stats.norm.cdf(U), rtol=1e-6, atol=1e-12)
    assert np.all(np.diff(x) > 0)
    slope = jax.vmap(jax.grad(normal_form(law)))(jnp.asarray(U))
    expected = jax.scipy.stats.norm.logpdf(U) - law.log_prob(x)
    np.testing.assert_allclose(jnp.log(slope), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("u", [-12.0, 12.0])
@pytest.mark.parametrize("name", EXACT)
def test_far_out_nothing_breaks(name, u):
    value, slope = jax.value_and_grad(normal_form(EXACT[name]))(u)
    assert np.isfinite(value) and np.isfinite(slope)


def mixed():
    """Laws with and without a form, one that depends on another, vectors and a plate."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    level = numpyro.sample("level", dist.Normal(0.0, scale))
    numpyro.sample("share", dist.Beta(2.0, 3.0))
    numpyro.sample(
        "pair", dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    )
    with numpyro.plate("members", 3):
        numpyro.sample("rates", dist.Gamma(2.0, 1.0))
    numpyro.factor("extra", -0.1 * level**2)
    return sk.models.LocalLevel(scale, 1.0 + level**2)


PROGRAM = sk.program(mixed)


@pytest.mark.parametrize("whiten", [True, False])
def test_jacobians_are_those_of_the_map(whiten):
    zeros, frame = frame_of(PROGRAM, jax.random.key(0), whiten=whiten)
    flat, unravel = ravel_pytree(zeros)
    assert flat.size == 1 + 1 + 1 + 2 + 3
    u = 0.5 * jax.random.normal(jax.random.key(1), flat.shape)

    def values(u):
        return ravel_pytree(settle(PROGRAM, frame, unravel(u)).values)[0]

    settled = settle(PROGRAM, frame, unravel(u))
    exact = jnp.linalg.slogdet(jax.jacfwd(values)(u))[1]
    np.testing.assert_allclose(settled.log_jacobian, exact, rtol=1e-4)
    # the prior in these coordinates is that of the sites, moved by the Jacobian
    log_prior = build_with_prior(PROGRAM, settled.values)[1] + 0.1 * settled.values["level"] ** 2
    np.testing.assert_allclose(settled.log_prior, log_prior + exact, rtol=1e-4)
    assert set(frame) == ({"share", "rates"} if whiten else set(zeros))


@pytest.mark.parametrize("whiten", [True, False])
def test_draws_of_the_prior_have_its_density(whiten):
    """The mean ratio of a narrow law to the prior, at draws of the prior, is one."""
    zeros, frame = frame_of(PROGRAM, jax.random.key(0), whiten=whiten)
    unravel = ravel_pytree(zeros)[1]
    draw = jax.jit(jax.vmap(lambda k: ravel_pytree(sample_prior(PROGRAM, frame, zeros, k))[0]))
    u = draw(jax.random.split(jax.random.key(2), 20_000))
    centre, scale = jnp.median(u, axis=0), 0.5 * u.std(axis=0)

    def ratio_at(u):
        narrow = jnp.sum(jax.scipy.stats.norm.logpdf(u, centre, scale))
        return jnp.exp(narrow - settle(PROGRAM, frame, unravel(u)).log_prior)

    ratio = jax.jit(jax.vmap(ratio_at))(u)
    error = ratio.std() / np.sqrt(ratio.size)
    assert abs(ratio.mean() - 1) < 4 * error < 0.3
    if whiten:
        assert np.all(np.abs(centre) < 0.1) and np.all(np.abs(2 * scale - 1) < 0.3)
