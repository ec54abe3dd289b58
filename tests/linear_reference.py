"""Linear Gaussian models that several files infer, and the exact score of one of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import constraints

import ssmkit as sk
from ssmkit.engines.online_learning import adaptive
from ssmkit.models.base import as_arrays
from ssmkit.smc.recipes import Step

FULL = as_arrays(
    sk.models.LinearGaussian(
        np.array([0.5, -0.5]),
        np.array([[1.0, 0.2], [0.2, 2.0]]),
        transition_matrix=np.array([[0.8, 0.3], [-0.2, 0.7]]),
        transition_cov=np.array([[0.5, 0.1], [0.1, 0.3]]),
        emission_matrix=np.array([[1.0, 0.2], [0.5, -1.0], [0.3, 0.3]]),
        emission_cov=np.array([[0.6, 0.4, 0.0], [0.4, 0.5, 0.1], [0.0, 0.1, 0.7]]),
    )
)


def program():
    """A persistence and a noise variance, learned."""
    noise = numpyro.param("noise", 0.2, constraint=constraints.positive)
    return scalar(numpyro.param("persistence", 0.5), noise)


def scalar(persistence, noise):
    eye = jnp.eye(1)
    start = (np.zeros(1), np.eye(1))
    return sk.models.LinearGaussian(*start, persistence * eye, 0.3 * eye, eye, noise * eye)


def exact_increments(length):
    """Observations, and the score of each but the first at the program's start ``(T - 1, 2)``."""
    ys = jnp.asarray(sk.simulate(1, scalar(0.8, 0.4), length).observations)
    model = adaptive(sk.program(program))

    def terms(params):
        built = dataclasses.replace(model, params=params).built()
        return sk.Kalman().infer(jax.random.key(0), built, ys, None, None, "all")["log_likelihood"]

    exact = jax.jacrev(terms)(model.params)
    return ys, np.stack([exact[name] for name in sorted(exact)], axis=1)[1:]


def found_increments(engine, ys):
    """What an engine takes for the same, with the parameters held."""
    engine = dataclasses.replace(engine, ascent=sk.StochasticAscent(burn_in=10**6))
    model, key = adaptive(sk.program(program)), jax.random.key(4)

    def on(last, t):
        carried = engine.step(key, model, last, Step(t, ys[t], None, None))[0].carried
        return carried, carried.learning.increment

    first = engine.step(key, model, None, Step(0, ys[0], None, None))[0].carried
    return np.array(jax.jit(lambda c: jax.lax.scan(on, c, jnp.arange(1, len(ys)))[1])(first))
