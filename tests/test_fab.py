"""Flows learned by annealed draws: posteriors against grids, symmetry and quadrature."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors
from ssmkit.engines.fab_training import Task, begin, take_iterations

WELL_LOG_Z, WELL_RIGHT = 10.2934797, 0.844307  # by quadrature
FLOW = sk.learned.CouplingFlow(num_layers=4, width=32)
SMALL = sk.FAB(
    flow=FLOW,
    num_iterations=300,
    batch_size=128,
    num_temperatures=3,
    buffer=sk.learned.ReplayBuffer(capacity=60, begin=20),
    num_draws=4000,
    num_check=500,
    learning_rate=2e-3,
)


def well(x):
    """Two wells in one coordinate, a normal law in the other."""
    return -(x[0] ** 4) + 6 * x[0] ** 2 + 0.5 * x[0] - 0.5 * x[1] ** 2


WELL = sk.Density(well, 2)


@pytest.fixture(scope="module")
def wells():
    return [sk.infer(seed, SMALL, WELL) for seed in range(3)]


def test_both_wells_are_found_with_their_masses_and_the_evidence(wells):
    for found in wells:
        report = found.diagnostics
        assert not report["warnings"]
        assert report["flow_ess"] / SMALL.num_draws > 0.8
        gap = float(found.log_evidence) - WELL_LOG_Z
        assert abs(gap) < 4 * float(found.log_evidence_se)
        shares = jax.nn.softmax(found.params.log_weights[0])
        right = found.params["x"][0, :, 0] > 0
        mass = float(jnp.sum(jnp.where(right, shares, 0.0)))
        error = float(jnp.sqrt(jnp.sum((shares * (right - mass)) ** 2)))
        assert abs(mass - WELL_RIGHT) < 4 * error
        assert report["k_hat"] < 0.7


def test_estimates_from_both_sides_agree(wells):
    """Reverse and forward, from the flow, from annealing and from an independent run."""
    for found in wells:
        report = found.diagnostics
        for name in ("annealed", "tempered"):
            share = report["flow_ess"] / SMALL.num_draws
            # the share is one over the mean weight under the target, whichever side it is seen from
            assert abs(np.log(report[f"{name}_forward_ess"]) - np.log(share)) < 0.2
            assert report[f"{name}_missed"] < 0.02
            # a divergence is not negative, but for the noise of the evidence in it
            assert -0.05 < report[f"{name}_gap"] < 0.2
        assert 0 <= report["reverse_gap"] + 0.02
        error = np.hypot(report["annealed_log_evidence_se"], float(found.log_evidence_se))
        assert abs(report["annealed_log_evidence"] - float(found.log_evidence)) < 4 * error


def test_the_annealed_evidence_of_the_second_power_is_one_over_the_effective_share(wells):
    found = wells[0]
    log_weights = found.params.log_weights[0]
    ratio = jax.nn.logsumexp(2 * log_weights) - 2 * jax.nn.logsumexp(log_weights)
    share = float(jnp.exp(-ratio)) / log_weights.size
    assert abs(share - found.diagnostics["flow_ess"] / SMALL.num_draws) < 1e-4


def test_the_density_of_the_flow_is_exact(wells):
    """It adds up to one, and draws have the weights that it says."""
    flow = wells[0].learned
    one = jnp.linspace(-6, 6, 161)
    grid = jnp.stack(jnp.meshgrid(one, one, indexing="ij"), axis=-1).reshape(-1, 2)
    total = jnp.sum(jnp.exp(jax.lax.map(flow.log_prob, grid, batch_size=4096)))
    assert abs(float(total * (one[1] - one[0]) ** 2) - 1) < 0.01
    x, log_weights = wells[0].params["x"][0, :50], wells[0].params.log_weights[0, :50]
    expected = jax.vmap(lambda x: well(x) - flow.log_prob(x))(x)
    np.testing.assert_allclose(log_weights, expected, rtol=1e-4, atol=1e-3)


def test_a_run_that_is_cut_and_taken_up_again_is_the_run_that_was_not(tmp_path):
    engine = dataclasses.replace(SMALL, num_iterations=30, num_check=0)
    engine = dataclasses.replace(engine, buffer=sk.learned.ReplayBuffer(capacity=10, begin=5))
    path = tmp_path / "run.ssm"
    whole = sk.infer(5, engine, WELL)
    count = []

    def stop(line):
        count.append(line)
        return len(count) == 12

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.LearningWarning)
        cut = sk.infer(5, engine, WELL, checkpoint=path, callback=stop)
        assert cut.diagnostics["interrupted"] and cut.diagnostics["iterations"] == 12
        again = sk.infer(5, engine, WELL, checkpoint=path)
    assert again.diagnostics["iterations"] == 30
    for a, b in zip(jax.tree.leaves(whole.learned), jax.tree.leaves(again.learned), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.params["x"], again.params["x"])
    with pytest.raises(errors.SaveError, match="another run"):
        sk.infer(6, engine, WELL, checkpoint=path)


def test_chunks_do_not_change_the_numbers_and_one_compilation_serves_all():
    engine = dataclasses.replace(SMALL, buffer=sk.learned.ReplayBuffer(capacity=10, begin=2))
    target = engine.target_of(jax.random.key(0), WELL, None, None)
    task = Task(engine, target, jax.random.key(1))
    flow = FLOW.build(jax.random.key(2), 2, target.dtype)
    together, _ = take_iterations(task, begin(task, flow), jnp.asarray(6))
    before = take_iterations._cached._cache_size()
    apart = begin(task, flow)
    for count in (1, 3, 2):
        apart, _ = take_iterations(task, apart, jnp.asarray(count))
    assert take_iterations._cached._cache_size() == before
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_follow_the_flow_as_it_moves():
    """At the second power a row's log weight and log density add up to what they began with."""
    engine = dataclasses.replace(
        SMALL, num_temperatures=0, buffer=sk.learned.ReplayBuffer(capacity=8, begin=2)
    )
    target = engine.target_of(jax.random.key(0), WELL, None, None)
    task = Task(engine, target, jax.random.key(1))
    flow = FLOW.build(jax.random.key(2), 2, target.dtype)
    learner, _ = take_iterations(task, begin(task, flow), jnp.asarray(1))
    before = learner.rows
    learner, _ = take_iterations(task, learner, jnp.asarray(6))
    after = learner.rows
    kept = slice(0, engine.batch_size)  # nothing has come over the first batch yet
    moved = np.abs(after.log_q[kept] - before.log_q[kept])
    assert np.sum(moved > 1e-3) > engine.batch_size // 2
    total = [rows.log_weights[kept] + rows.log_q[kept] for rows in (before, after)]
    np.testing.assert_allclose(*total, rtol=1e-6)
    # what was written back is near what the flow says now: it has moved little since
    now = jax.vmap(learner.flow.log_prob)(after.x[kept])
    assert np.mean(np.abs(now - after.log_q[kept])) < 0.3 * np.mean(
        np.abs(now - before.log_q[kept])
    )


def test_going_on_from_a_flow_and_files(wells, tmp_path):
    engine = dataclasses.replace(SMALL, num_iterations=1, num_check=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.LearningWarning)
        again = sk.infer(1, engine, WELL, learned=wells[0].learned)
    assert again.diagnostics["flow_ess"] / engine.num_draws > 0.7
    other = dataclasses.replace(engine, flow=sk.learned.CouplingFlow(num_layers=2, width=32))
    with pytest.raises(errors.OptionError, match="another shape"):
        sk.infer(1, other, WELL, learned=wells[0].learned)
    path = wells[0].save(tmp_path / "well.ssm")
    loaded = sk.load_posterior(path, using=[well])
    np.testing.assert_array_equal(loaded.params["x"], wells[0].params["x"])
    x = jnp.array([1.0, 0.3])
    np.testing.assert_array_equal(loaded.learned.log_prob(x), wells[0].learned.log_prob(x))
    assert repr(loaded) == repr(wells[0])


def test_what_a_density_has_and_what_it_has_not(wells):
    found = wells[0]
    assert "Density(well, dim=2)" in repr(found) and "unbiased, of data" in repr(found)
    table = found.summary().table
    shares = jax.nn.softmax(found.params.log_weights[0])
    mean = jnp.sum(shares[:, None] * found.params["x"][0], axis=0)
    np.testing.assert_allclose(table["mean"], mean, rtol=1e-4)
    assert found.to_arviz()["posterior"]["x"].shape == (1, 1000, 2)
    for asked in (lambda: found.states, lambda: sk.forecast(0, found, 2),
                  lambda: found.apply(np.zeros(3)), lambda: sk.plots.states(found),
                  lambda: sk.stream(0, sk.Kalman(), found)):  # fmt: skip
        with pytest.raises(errors.NotComputed):
            asked()


def symmetric():
    """The sign of the loading cannot be told: two modes that are mirror images."""
    loading = numpyro.sample("loading", dist.Normal(0.0, 2.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    one = jnp.ones((1, 1))
    return sk.models.LinearGaussian(
        jnp.zeros(1), one, 0.9 * one, 0.19 * one, loading * one, noise**2 * one
    )


def series(seed):
    one = np.ones((1, 1))
    model = sk.models.LinearGaussian(np.zeros(1), one, 0.9 * one, 0.19 * one, 1.5 * one, 0.25 * one)
    return np.asarray(sk.simulate(seed, model, 30).observations)


def grid_of(ys):
    """Log evidence and mean noise by a grid."""
    loading = jnp.linspace(-6, 6, 241)
    log_noise = jnp.linspace(-4, 2, 121)
    law = dist.Normal(0.0, 2.0), dist.Normal(-1.0, 1.0)

    def one(at):
        a, b = at
        model = sk.program(symmetric).model_at({"loading": a, "noise": jnp.exp(b)})
        value = sk.log_evidence(jax.random.key(0), sk.Kalman(), model, jnp.asarray(ys))
        return value + law[0].log_prob(a) + law[1].log_prob(b)

    points = jnp.stack(jnp.meshgrid(loading, log_noise, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = jax.jit(lambda p: jax.lax.map(one, p, batch_size=2048))(points)
    width = (loading[1] - loading[0]) * (log_noise[1] - log_noise[0])
    shares = jax.nn.softmax(log_p)
    moments = (jnp.sum(shares * jnp.abs(points[:, 0])), jnp.sum(shares * jnp.exp(points[:, 1])))
    return float(jax.nn.logsumexp(log_p) + jnp.log(width)), [float(m) for m in moments]


PROGRAM_ENGINE = dataclasses.replace(SMALL, evidence=sk.Kalman(), num_iterations=150)


@pytest.fixture(scope="module")
def mirrored():
    return [(series(s), sk.infer(s, PROGRAM_ENGINE, symmetric, series(s))) for s in range(3)]


def weighted(found, values):
    """Mean by weight and its standard error."""
    shares = np.asarray(jax.nn.softmax(found.params.log_weights[0]), float)
    mean = float(shares @ np.asarray(values, float))
    return mean, float(np.sqrt(np.sum((shares * (values - mean)) ** 2)))


def test_mirrored_modes_have_half_the_mass_each(mirrored):
    for ys, found in mirrored:
        report = found.diagnostics
        assert report["flow_ess"] / PROGRAM_ENGINE.num_draws > 0.5
        mass, error = weighted(found, np.asarray(found.params["loading"][0]) > 0)
        assert abs(mass - 0.5) < 4 * error < 0.1
        log_evidence, (loading, noise) = grid_of(ys)
        assert abs(float(found.log_evidence) - log_evidence) < 4 * float(found.log_evidence_se)
        for name, exact in (("loading", loading), ("noise", noise)):
            mean, error = weighted(found, np.abs(found.params[name][0]))
            assert abs(mean - exact) < 4 * error + 1e-3


def test_states_predictions_and_arviz_of_a_program(mirrored):
    ys, found = mirrored[0]
    assert found.states.mean().shape == (30, 1)
    # the state's sign is that of the loading, which is not known
    signs = jnp.sign(found.states.sample(0, 400)[:, :, 0] @ jnp.asarray(ys[:, 0]))
    assert abs(float(signs.mean())) < 0.5
    assert sk.forecast(0, found, 3).observations.mean().shape == (3, 1)
    assert found.evidence_kind == "unbiased" and found.evidence_of == "data"
    data = found.to_arviz()
    assert {"posterior", "weighted_posterior", "observed_data"} <= set(data.groups()) | set(
        getattr(data, "children", ())
    )
    assert "worth" in repr(found)


def test_a_flow_that_has_learned_nothing_says_so_everywhere():
    engine = dataclasses.replace(
        PROGRAM_ENGINE, num_iterations=1, num_draws=60, defence=0.0, num_check=0
    )
    with pytest.warns(errors.LearningWarning, match="degenerate"):
        found = sk.infer(0, engine, symmetric, np.repeat(series(0), 10, axis=0) * 20)
    assert "WARNING: the weights degenerate" in repr(found)
    assert any("degenerate" in text for text in found.summary().warnings)


class Around(eqx.Module):
    """A normal law: the smallest flow there is."""

    centre: jax.Array
    log_scale: jax.Array
    dim: int = eqx.field(static=True)

    def sample_and_log_prob(self, key):
        x = self.centre + jnp.exp(self.log_scale) * jax.random.normal(key, (self.dim,))
        return x, self.log_prob(x)

    def log_prob(self, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, self.centre, jnp.exp(self.log_scale)))


@dataclasses.dataclass(frozen=True)
class Wide:
    """A flow of one's own, which begins wide."""

    def build(self, key, dim, dtype):
        return Around(jnp.zeros(dim, dtype), jnp.log(jnp.asarray(6.0, dtype)), dim)


def test_a_missing_mode_is_told_by_an_independent_run():
    """A flow that sits in one mode has fine weights: only draws from elsewhere see the other."""

    def far(x):
        left, right = -0.5 * jnp.sum((x + 6) ** 2), -0.5 * jnp.sum((x - 6) ** 2)
        return jnp.logaddexp(left, right)

    engine = dataclasses.replace(SMALL, num_iterations=1, num_temperatures=1, flow=Wide())
    one_mode = Around(jnp.full(2, -6.0), jnp.asarray(0.0), 2)
    with pytest.warns(errors.LearningWarning, match="a mode is missing"):
        found = sk.infer(0, engine, sk.Density(far, 2), learned=one_mode)
    assert found.diagnostics["flow_ess"] > 0.99 * engine.num_draws
    assert abs(float(found.log_evidence) - np.log(2 * np.pi)) < 0.01  # half of what is there
    assert found.diagnostics["tempered_missed"] > 0.3


def vague():
    return sk.models.LocalLevel(numpyro.sample("level", dist.ImproperUniform(
        dist.constraints.positive, (), ())), 1.0)  # fmt: skip


def counted():
    return sk.models.LocalLevel(1.0 + numpyro.sample("kind", dist.Bernoulli(0.5)), 1.0)


def pointed():
    return sk.models.LocalLevel(numpyro.param("level", 1.0), 1.0)


NOTHING = sk.models.LocalLevel(1.0, 1.0)
KALMAN = sk.FAB(evidence=sk.Kalman())


def nowhere(x):
    return jnp.where(x[0] > 1e6, 0.0, jnp.nan)


def vector(x):
    return -(x**2)


def wrong_size(x):
    return x @ jnp.ones(3)


@pytest.mark.parametrize(
    ("engine", "target", "ys", "kind", "said"),
    [
        (sk.FAB(), sk.Density(nowhere, 2), None, errors.NonFiniteError, "none of the first draws"),
        (sk.FAB(), sk.Density(vector, 2), None, errors.ModelError, "one real number"),
        (sk.FAB(), sk.Density(wrong_size, 2), None, errors.ModelError, "2 coordinates"),
        (sk.FAB(), WELL, np.zeros(3), errors.DataError, "without a series"),
        (sk.Kalman(), WELL, None, errors.EngineError, "plain density"),
        (KALMAN, WELL, None, errors.EngineError, "no series"),
        (KALMAN, symmetric, None, errors.DataError, "no observations"),
        (KALMAN, NOTHING, np.zeros(3), errors.EngineError, "nothing to learn"),
        (KALMAN, vague, np.zeros(3), errors.ParameterError, "improper"),
        (KALMAN, counted, np.zeros(3), errors.ParameterError, "discrete"),
        (KALMAN, pointed, np.zeros(3), errors.ParameterError, "no prior"),
    ],
)
def test_targets_that_no_flow_can_learn(engine, target, ys, kind, said):
    with pytest.raises(kind, match=said):
        sk.infer(0, dataclasses.replace(engine, batch_size=16)
                 if isinstance(engine, sk.FAB) else engine, target, ys)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"num_iterations": 0},
        {"defence": 1.0},
        {"alpha": 0.0},
        {"moves": "gibbs"},
        {"bound": -1.0},
        {"buffer": 5},
        {"flow": "spline"},
        {"num_draws": 3},
    ],
)
def test_impossible_options(changes):
    with pytest.raises(errors.OptionError, match=next(iter(changes))):
        sk.infer(0, dataclasses.replace(SMALL, **changes), WELL)


def test_densities_refuse_what_is_none():
    with pytest.raises(errors.OptionError, match="dim counts"):
        sk.Density(well, 0)
    with pytest.raises(errors.OptionError, match="is a function"):
        sk.Density(3.0, 2)
