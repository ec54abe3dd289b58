"""A network for all times and series: exact where the start is, better than it elsewhere."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.amortised_bound import loss, paths_of, prefix_bound
from ssmkit.models.base import as_arrays

LENGTH = 20
VOLATILITY = as_arrays(sk.models.StochasticVolatility(-1.0, 0.97, 0.2))
YS = np.array(sk.simulate(0, VOLATILITY, LENGTH).observations)
LINEAR = as_arrays(
    sk.models.LinearGaussian(
        *(np.zeros(2), np.eye(2), np.array([[0.8, 0.3], [-0.2, 0.7]]), 0.3 * np.eye(2)),
        *(np.array([[1.0, 0.2], [0.3, -1.0]]), 0.5 * np.eye(2)),
    )
)


def engine(steps, **options):
    plain = {
        "amortised": sk.learned.Amortised(size=8, width=16, steps=steps, batch_size=8),
        "num_steps": 0,
        "num_paths": 400,
        "value": sk.learned.Polynomial(num_points=64),
    }
    return sk.OnlineVariational(**plain | options)


ENGINE = engine(300)


@pytest.fixture(scope="module")
def posterior():
    return sk.infer(1, ENGINE, VOLATILITY, YS)


def test_an_exact_start_stays_exact_while_it_learns():
    """The gradient is zero draw by draw, so that nothing moves."""
    ys = np.array(sk.simulate(3, LINEAR, 5).observations)
    ys[2, 1] = ys[3] = np.nan
    exact = sk.infer(0, sk.Kalman(), LINEAR, ys)
    found = sk.infer(1, engine(5, kernel="network", num_paths=10), LINEAR, ys)
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-8)
    np.testing.assert_allclose(found.filtered.mean(), exact.filtered.mean(), atol=1e-8)
    np.testing.assert_allclose(found.filtered.cov(), exact.filtered.cov(), atol=1e-8)


def test_the_slope_of_the_loss_is_that_of_the_bound():
    """Against differences of the mean bound, where all that is moved is the first filter: what is
    left out of the gradient has mean zero, and later starts take what came before as given."""
    learner = engine(0, amortised=sk.learned.Amortised(4, 4, steps=0, batch_size=500, window=1))
    network = sk.infer(1, learner, VOLATILITY, YS).learned
    # away from its start, where all parts move
    network = jax.tree.map(lambda a: a + 0.1 if a.ndim == 1 else a, network)
    series = jax.tree.map(lambda a: jnp.asarray(a)[None], (YS, None, None))

    @jax.jit
    @jax.vmap
    def slope_and_rise(key):
        def value(bias):
            moved = eqx.tree_at(lambda n: n.outer.bias, network, bias)
            return loss(moved, learner, key, VOLATILITY, series)

        bias, step = network.outer.bias, 1e-4
        bumps = step * jnp.eye(bias.shape[0])[:2]  # shift and scale of the filter
        rise = jax.vmap(lambda d: (value(bias + d) - value(bias - d)) / (2 * step))(bumps)
        return jax.grad(value)(bias)[:2], rise

    mine, rise = slope_and_rise(jax.random.split(jax.random.key(5), 200))
    error = jnp.std(mine - rise, axis=0) / np.sqrt(200)
    assert jnp.all(jnp.abs(jnp.mean(mine - rise, axis=0)) < 4.5 * error)
    assert jnp.all(jnp.abs(jnp.mean(rise, axis=0)) > 4.5 * error)  # there is something to see


def test_a_bound_up_to_a_time_is_that_of_the_series_cut_there():
    """By the same draws, summed by hand."""
    network = sk.infer(1, engine(0), VOLATILITY, YS).learned
    series = (jnp.asarray(YS), None, None)
    paths = paths_of(ENGINE, network, VOLATILITY, series)
    keys = jax.random.split(jax.random.key(2), 4000)
    for end in (0, 7, LENGTH - 1):
        whole = jax.vmap(lambda k, e=end: prefix_bound(k, paths, VOLATILITY, series, e))(keys)
        cut = (series[0][: end + 1], None, None)
        part = paths.until(end + 1).bounds(jax.random.key(3), 4000, VOLATILITY, cut)
        error = jnp.hypot(jnp.std(whole), jnp.std(part)) / np.sqrt(4000)
        assert abs(jnp.mean(whole) - jnp.mean(part)) < 4.5 * error


def test_learning_comes_near_to_optimising_each_step(posterior):
    start = sk.infer(1, engine(0), VOLATILITY, YS)
    best = sk.infer(1, sk.OnlineVariational(num_paths=400), VOLATILITY, YS)
    gap = lambda p: float(best.log_evidence - p.log_evidence)  # noqa: E731 - one line
    error = float(np.hypot(best.log_evidence_se, posterior.log_evidence_se))
    assert gap(posterior) < 0.25 * gap(start) + 4.5 * error
    assert gap(posterior) < gap(start)
    history = posterior.diagnostics["history"]["bound_per_step"]
    assert np.isfinite(history).all() and posterior.diagnostics["skipped_steps"] == 0


def test_what_was_learned_serves_new_series_and_streams(posterior, tmp_path):
    ys = np.array(sk.simulate(9, VOLATILITY, 12).observations)
    again = sk.infer(2, ENGINE, VOLATILITY, ys, learned=posterior.learned)
    for a, b in zip(*(jax.tree.leaves(p.learned) for p in (again, posterior)), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = paths_of(ENGINE, posterior.learned, VOLATILITY, (jnp.asarray(ys), None, None))
    np.testing.assert_allclose(again.filtered.mean(), alone.filters.mean[:, 0], atol=1e-10)
    batch = np.stack([ys, ys[::-1]])
    both = sk.infer(2, ENGINE, VOLATILITY, batch, batched=True, learned=posterior.learned)
    np.testing.assert_allclose(both[0].filtered.mean(), again.filtered.mean(), atol=1e-10)
    flow = sk.stream(3, ENGINE, again)
    whole = np.append(ys, [0.4, -0.1])
    longer = sk.infer(2, ENGINE, VOLATILITY, whole, learned=posterior.learned)
    first = flow.update(0.4)
    flow = sk.load_stream(flow.save(tmp_path / "amortised.stream"))
    for belief, t in ((first, -2), (flow.update(-0.1), -1)):
        np.testing.assert_allclose(belief.mean(), longer.filtered.mean()[t], atol=1e-10)
    assert "StochasticVolatility" in repr(flow)
    refined = sk.stream(3, dataclasses.replace(ENGINE, num_steps=1), again)
    assert np.isfinite(refined.update(0.4).mean())
    wider = dataclasses.replace(ENGINE, amortised=sk.learned.Amortised(size=9, width=16))
    with pytest.raises(errors.OptionError, match="other options"):
        sk.stream(3, wider, again)
    path = posterior.save(tmp_path / "amortised.ssm")
    loaded = sk.load_posterior(path)
    np.testing.assert_array_equal(loaded.learned.outer.bias, posterior.learned.outer.bias)
    assert np.isfinite(sk.forecast(0, loaded, num_steps=2).observations.mean()).all()


def program():
    return sk.models.StochasticVolatility(-1.0, numpyro.param("persistence", 0.9), 0.2)


@pytest.mark.parametrize(
    ("engine", "target", "options", "error", "match"),
    [
        (ENGINE, program, {}, errors.EngineError, "belongs to one model"),
        (ENGINE, VOLATILITY, {"learned": 3}, errors.OptionError, "no use"),
        (sk.OnlineVariational(), VOLATILITY, {"learned": 3}, errors.OptionError, "ahead"),
        (engine(3, amortised=5), VOLATILITY, {}, errors.OptionError, "amortised must"),
    ],
)
def test_what_it_cannot_learn_is_refused_by_name(engine, target, options, error, match):
    with pytest.raises(error, match=match):
        sk.infer(0, engine, target, YS, **options)


@pytest.mark.parametrize(
    "changes", [{"kernel": "network"}, {"amortised": sk.learned.Amortised(size=9, width=16)}]
)
def test_a_network_of_other_options_is_refused(posterior, changes):
    with pytest.raises(errors.OptionError, match="other options"):
        other = dataclasses.replace(ENGINE, **changes)
        sk.infer(0, other, VOLATILITY, YS, learned=posterior.learned)


class Pushed(sk.StateSpaceModel):
    """Counts, driven by inputs."""

    gain: jax.Array

    def initial(self, u):
        return dist.Normal(u, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.9 * x + self.gain * u, 0.3)

    def emission(self, x, u):
        return dist.Poisson(jnp.exp(x))


def test_inputs_gaps_single_precision_and_arviz():
    us = np.sin(np.arange(8.0)).astype(np.float32)
    model = Pushed(jnp.asarray(0.5, jnp.float32))
    ys = np.array(sk.simulate(2, model, 8, us=us).observations)
    seen = np.arange(8) != 3
    found = sk.infer(0, engine(3), model, ys, us, observed=seen)
    assert {a.dtype for a in jax.tree.leaves(found.learned)} == {np.dtype(np.float32)}
    assert np.isfinite(found.states.mean()).all()
    other = sk.infer(0, engine(3), model, np.where(seen, ys, 7), us, observed=seen)
    np.testing.assert_array_equal(found.filtered.mean(), other.filtered.mean())
    assert found.to_arviz() is not None


def test_without_a_network_nothing_begins():
    with pytest.raises(errors.EngineError, match="not been learned"):
        sk.stream(0, ENGINE, VOLATILITY).update(0.3)
    with pytest.raises(errors.EngineError, match="not been learned"):
        sk.infer(0, sk.GuidedSMC(ENGINE), VOLATILITY, YS)
    with pytest.raises(errors.EngineError, match="not been learned"):
        sk.log_evidence(jax.random.key(0), ENGINE, VOLATILITY, YS)
