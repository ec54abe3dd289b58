"""A network that carries the past of online variational inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_reference import exact_increments, found_increments, program

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.online_learning import adaptive
from ssmkit.models.base import as_arrays

SMALL = sk.learned.NetworkRegression(width=16, num_points=64, num_steps=5, batch_size=16)


def test_a_known_function_is_found_and_the_weights_go_on():
    """Noisy values of a curve, times of large and small scale: more times, less error."""
    regression = sk.learned.NetworkRegression(num_points=256, rate=3e-3)
    curve = lambda z: jnp.array([jnp.sin(2 * z[0]) * z[1], 100 * jnp.cos(2 * z[1]) + 7])  # noqa: E731
    noise = jnp.array([0.3, 30.0])

    def draw(key):
        place, error = jax.random.split(key)
        z = jax.random.normal(place, (256, 2))
        values = jax.vmap(curve)(z)
        return z, values, values + noise * jax.random.normal(error, values.shape)

    def again(fit, key):
        z, _, noisy = draw(key)
        return regression.fit(key, z, noisy, fit), None

    def error_of(fit):
        z, values, _ = draw(jax.random.key(99))
        return np.array(
            jnp.mean((jax.vmap(fit)(z) - values) ** 2, axis=0) / jnp.var(values, axis=0)
        )

    z, _, noisy = draw(jax.random.key(0))
    first = regression.fit(jax.random.key(0), z, noisy, None)
    run = jax.jit(lambda fit: jax.lax.scan(again, fit, jax.random.split(jax.random.key(1), 60))[0])
    last = run(first)
    linear = sk.learned.Polynomial(1).fit(jax.random.key(0), z, noisy, None)
    assert np.all(error_of(last) < 0.1)
    assert np.all(error_of(last) < 0.25 * error_of(first))
    assert np.all(error_of(linear) > 0.8)
    flat = regression.fit(jax.random.key(0), z, jnp.ones((256, 2)), first)
    assert np.all(np.isfinite(flat(z[0])))


def test_increments_are_those_of_recursive_maximum_likelihood():
    """With the parameters held; the exact score is quadratic, which a line alone falls short of."""
    ys, exact = exact_increments(150)
    engine = sk.OnlineVariational(
        num_steps=0,
        num_paths=2,
        value=sk.learned.Polynomial(num_points=500),
        score=sk.learned.NetworkRegression(width=32),
    )
    gap = found_increments(engine, ys) - exact
    error = gap.std(axis=0) / np.sqrt(len(ys))
    assert np.all(np.abs(gap.mean(axis=0)) < 4 * error + 0.02 * exact.std(axis=0))
    assert np.all(gap.std(axis=0) < 0.14 * exact.std(axis=0))  # a correlation of 0.99


def test_a_stream_learns_as_infer_does_and_goes_on_after_it_was_saved(tmp_path):
    engine = sk.OnlineVariational(
        num_steps=2,
        num_paths=20,
        num_samples=8,
        value=SMALL,
        score=SMALL,
        ascent=sk.StochasticAscent(burn_in=1),
    )
    ys = np.random.default_rng(1).normal(size=(6, 1))
    flow = sk.stream(1, engine, program)
    for y in ys[:4]:
        flow.update(y)
    whole = sk.infer(1, engine, program, ys[:4])
    for name, value in whole.params.mean().items():
        np.testing.assert_allclose(flow.params[name], value, rtol=1e-6)
    again = sk.load_stream(flow.save(tmp_path / "network.stream"), using=[program])
    for y in ys[4:]:
        assert np.array_equal(flow.update(y).mean(), again.update(y).mean())
    belief = sk.Gaussian(jnp.zeros(1), jnp.eye(1), (1,))
    begun = engine.begin(
        jax.random.key(0), adaptive(sk.program(program)), belief, jnp.zeros(()), None
    )
    alike = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert alike(begun) == alike(flow._stepper.seen.state.carry)


def test_single_precision_stays_single_and_a_linear_model_exact():
    model = as_arrays(
        sk.models.LinearGaussian(
            *(np.zeros(2), np.eye(2), 0.9 * np.eye(2), 0.1 * np.eye(2), np.eye(2), 0.5 * np.eye(2))
        )
    )
    model = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model)
    ys = np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32)
    engine = sk.OnlineVariational(num_steps=2, num_paths=20, value=SMALL)
    found, exact = (sk.infer(0, e, model, ys) for e in (engine, sk.Kalman()))
    assert {a.dtype for a in jax.tree.leaves(found.parts["carry"])} == {np.dtype(np.float32)}
    online = found.diagnostics["online_log_evidence"]
    np.testing.assert_allclose(online, exact.log_evidence, atol=1e-3)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (sk.learned.NetworkRegression(batch_size=0), "batch_size"),
        (sk.learned.NetworkRegression(rate=-1.0), "rate"),
        (sk.learned.RecursiveMonteCarlo(num_points=0), "num_points"),
        (sk.learned.KernelRidge(degree=3), "degree"),
    ],
)
def test_parts_that_cannot_be_are_refused_by_name(part, match):
    with pytest.raises(errors.OptionError, match=match):
        sk.infer(0, sk.OnlineVariational(value=part), program, np.zeros((3, 1)))
