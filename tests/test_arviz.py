"""The export to ArviZ: joint, equally weighted, dated, and the same numbers on 0.2x and 1.x.

The toy has two parameters (a bias of the observation and a drift of the state) under which states
and parameters are jointly normal given the data, so that every moment is known exactly.
"""

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from scipy.stats import multivariate_normal as normal

import ssmkit as sk
from ssmkit.engines.options import RunOptions
from ssmkit.engines.states import run_states
from ssmkit.interop.joint import systematic
from ssmkit.models.programs import build
from ssmkit.posterior import Draws, Posterior
from ssmkit.serialise import load_posterior
from ssmkit.series import as_data
from ssmkit.validation import as_target

T = 24
DATES = pd.date_range("2001-03-31", periods=T, freq="QE")
RNG = np.random.default_rng(3)
YS = pd.Series(np.cumsum(RNG.normal(0.3, 0.5, T)) + 1.0 + RNG.normal(0, 0.5, T), index=DATES)
YS.iloc[[4, 11]] = np.nan
FRAME = YS.to_frame("flow")
PRIOR_STD = {"bias": 1.5, "drift": 0.6}


def toy():
    values = {name: numpyro.sample(name, dist.Normal(0.0, std)) for name, std in PRIOR_STD.items()}
    one = jnp.ones((1, 1))
    return sk.models.LinearGaussian(
        jnp.zeros(1),
        one,
        one,
        0.25 * one,
        one,
        0.25 * one,
        transition_bias=values["drift"][None],
        emission_bias=values["bias"][None],
    )


@pytest.fixture(scope="module")
def exact():
    """Mean and covariance of (bias, drift, x_0 … x_{T-1}) given the data, by dense algebra."""
    steps = np.tril(np.ones((T, T)), 0)
    states = np.column_stack([np.zeros(T), np.arange(T), steps])  # of (bias, drift, x_0, noises)
    prior = np.diag([PRIOR_STD["bias"] ** 2, PRIOR_STD["drift"] ** 2, 1.0, *[0.25] * (T - 1)])
    there = YS.notna().to_numpy()
    observe = states[there] + np.eye(1, T + 2)
    gain = prior @ observe.T @ np.linalg.inv(observe @ prior @ observe.T + 0.25 * np.eye(T - 2))
    mean, cov = gain @ YS[there].to_numpy(), prior - gain @ observe @ prior
    pick = np.vstack([np.eye(2, T + 2), states])
    return pick @ mean, pick @ cov @ pick.T


@pytest.fixture(scope="module")
def nuts():
    engine = sk.NUTS(
        sk.Kalman(), num_warmup=100, num_samples=100, num_chains=2, num_state_draws=120
    )
    return sk.infer(2, engine, toy, FRAME, progress=False)


@pytest.fixture(scope="module")
def laplace():
    """The target is normal, so that these draws are independent and exact."""
    engine = sk.GradientFit(sk.Kalman(), num_starts=1, laplace_draws=1500)
    return sk.infer(4, engine, toy, FRAME, progress=False)


@pytest.fixture(scope="module")
def point():
    return sk.infer(4, sk.GradientFit(sk.Kalman(), num_starts=1), toy, FRAME, progress=False)


@pytest.fixture(scope="module")
def weighted(exact):
    """Draws from another normal with their importance weights: what a sampler might return."""
    mean, cov = exact[0][:2], exact[1][:2, :2]
    aside = mean + 0.5 * np.sqrt(np.diag(cov)) * np.array([1.0, -1.0])
    draws = np.random.default_rng(8).multivariate_normal(aside, 2 * cov, size=1500)
    log_weights = normal.logpdf(draws, mean, cov) - normal.logpdf(draws, aside, 2 * cov) + 7.0
    values = {"bias": jnp.asarray(draws[:, 0]), "drift": jnp.asarray(draws[:, 1])}
    return fabricate(values, jnp.asarray(log_weights), shape=(3, 500))


def fabricate(values, log_weights, shape):
    """A posterior by hand: parameter draws of any weight, with states for each."""
    target, data = as_target(toy), as_data(FRAME, None, None, batched=False)
    model = eqx.filter_vmap(lambda v: build(target, v))(values)
    parts = run_states(sk.Kalman(), jax.random.key(0), model, data, RunOptions(), log_weights)
    del parts["log_evidence"]
    params = {name: value.reshape(shape) for name, value in values.items()}
    parts["params"] = Draws(params, log_weights.reshape(shape))
    return Posterior(sk.Kalman(), target, data, model, parts, sk.Kalman())


def table(data, group="posterior", names=None):
    """Means and Monte Carlo errors of a group, by ArviZ itself."""
    found = az.summary(data, group=group, var_names=names, round_to="none")
    return found["mean"].to_numpy(float), found["mcse_mean"].to_numpy(float)


def joint(data):
    """Draws of (bias, drift, x_0 … x_{T-1}), one row each."""
    group = data["posterior"]
    columns = [np.asarray(group[name]).ravel() for name in ("bias", "drift")]
    return np.column_stack([*columns, np.asarray(group["states"]).reshape(-1, T)])


@pytest.mark.parametrize("name", ["nuts", "laplace", "weighted"])
def test_summary_agrees_with_the_posterior_and_with_the_exact_law(name, exact, request):
    posterior = request.getfixturevalue(name)
    data = posterior.to_arviz(num_draws=1500, key=5)
    own = posterior.params.mean()
    means, errors = table(data, names=["bias", "drift", "states"])
    expected = np.array([own["bias"], own["drift"], *posterior.states.mean()[:, 0]])
    assert np.all(np.abs(means - expected) < 4 * errors)
    size = float(data["weighted_posterior"].attrs["effective_sample_size"])
    if name == "weighted":  # ArviZ does not know of the weights that were there before
        errors = np.maximum(errors, np.sqrt(np.diag(exact[1]) / size))
    assert np.all(np.abs(means - exact[0]) < 4 * errors)
    assert np.all(errors < 0.2)  # and that says something


@pytest.mark.parametrize("name", ["nuts", "laplace", "weighted"])
def test_parameters_and_states_are_drawn_jointly(name, exact, request):
    posterior = request.getfixturevalue(name)
    data = posterior.to_arviz(num_draws=1500)
    found = np.corrcoef(joint(data).T)[:2]
    spread = np.sqrt(np.diag(exact[1]))
    correlation = (exact[1] / np.outer(spread, spread))[:2]
    assert np.max(np.abs(correlation[0, 2:])) > 0.7  # a resample of the marginals would have 0
    size = float(data["weighted_posterior"].attrs["effective_sample_size"])
    size = 40 if name == "nuts" else size  # the chains are correlated
    error = (1 - correlation**2) / np.sqrt(size)
    assert np.all(np.abs(found - correlation) < 4 * error + 1e-12)


def test_draws_of_nuts_keep_their_chains_and_their_likelihood(nuts):
    data = nuts.to_arviz()
    group, stats = data["posterior"], data["sample_stats"]
    assert group["bias"].shape == (2, 60)
    index = np.asarray(stats["draw_index"])
    for name in ("bias", "drift"):
        raw = np.asarray(nuts.params[name])
        np.testing.assert_array_equal(group[name], np.take_along_axis(raw, index, axis=1))
        np.testing.assert_array_equal(data["weighted_posterior"][name], raw)
    report = nuts.diagnostics["sample_stats"]
    lp = -np.take_along_axis(report["potential_energy"], index, axis=1)
    np.testing.assert_array_equal(stats["lp"], lp)
    assert {"diverging", "acceptance_rate", "n_steps", "energy", "tree_depth"} <= set(stats)
    place = {"bias": group["bias"][1, 17].item(), "drift": group["drift"][1, 17].item()}
    model = build(as_target(toy), {name: jnp.asarray(v) for name, v in place.items()})
    value = sk.log_evidence(jax.random.key(0), sk.Kalman(), model, jnp.asarray(FRAME))
    one_step = data["log_likelihood"]["one_step"]
    assert one_step.dims == ("chain", "draw", "time")
    np.testing.assert_allclose(one_step[1, 17].sum(), value, rtol=1e-10)


def test_fewer_draws_on_request_and_equally_many_in_each_chain(nuts):
    assert nuts.to_arviz(num_draws=50)["posterior"]["states"].shape == (2, 25, T, 1)
    index = nuts.parts["state_index"]
    parts = nuts.parts | {"state_index": jnp.where(jnp.arange(120) < 63, index // 2, index)}
    uneven = eqx.tree_at(lambda p: p.parts, nuts, parts)
    data = uneven.to_arviz()
    assert data["posterior"]["bias"].shape == (2, 57)
    raw, place = np.asarray(nuts.params["bias"]), np.asarray(data["sample_stats"]["draw_index"])
    np.testing.assert_array_equal(data["posterior"]["bias"], np.take_along_axis(raw, place, 1))
    one_chain = eqx.tree_at(lambda p: p.parts, nuts, parts | {"state_index": index // 2})
    assert one_chain.to_arviz()["posterior"]["bias"].shape == (1, 120)


def test_states_only_when_no_parameter_was_drawn(point):
    data = point.to_arviz(num_draws=400)
    assert set(data["posterior"].data_vars) == {"states"}
    fixed = data["fixed_parameters"]
    assert fixed["bias"].dims == ()
    assert fixed["bias"].item() == point.params["bias"].item()
    means, errors = table(data)
    assert np.all(np.abs(means - point.states.mean()[:, 0]) < 4 * errors)
    assert "weighted_posterior" not in names_of(data)
    assert data["log_likelihood"]["one_step"].dims == ("time",)
    with pytest.raises((KeyError, AttributeError, ValueError)):
        az.loo(data)  # a constant repeated for every draw would have given a number
    attributes = data["posterior"].attrs
    np.testing.assert_allclose(attributes["log_evidence"], float(point.log_evidence))
    assert attributes["evidence_kind"] == "exact"
    assert attributes["evidence_of"] == "data given parameters"
    assert "sk.GradientFit" in attributes["engine"]


def names_of(data):
    groups = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in groups} - {""}


def test_groups_dims_and_coordinates(nuts):
    data = nuts.to_arviz()
    expected = {"posterior", "weighted_posterior", "log_likelihood", "sample_stats"}
    assert names_of(data) == expected | {"observed_data"}
    states = data["posterior"]["states"]
    assert states.dims == ("chain", "draw", "time", "state")
    assert states["state"].values.tolist() == ["x0"]
    assert pd.DatetimeIndex(states["time"].values).equals(DATES)
    observed = data["observed_data"]["observations"]
    assert observed["observation"].values.tolist() == ["flow"]
    np.testing.assert_array_equal(observed.values, FRAME.to_numpy())
    assert float(data["weighted_posterior"].attrs["effective_sample_size"]) == pytest.approx(200)
    assert "evidence_kind" not in data["posterior"].attrs


def test_unequal_weights_are_resampled_and_kept_aside(weighted):
    data = weighted.to_arviz(num_draws=600)
    assert data["posterior"]["bias"].shape == (1, 600)
    raw = data["weighted_posterior"]
    assert raw["log_weights"].shape == (3, 500)
    np.testing.assert_array_equal(raw["log_weights"], weighted.params.log_weights)
    weights = np.exp(raw["log_weights"].values - 7.0)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert float(raw.attrs["effective_sample_size"]) == pytest.approx(size)
    # each draw occurs as often as its weight says, up to one
    flat = weights.ravel() / weights.sum()
    drawn = np.asarray(data["posterior"]["bias"]).ravel()
    counts = (drawn[None] == np.asarray(raw["bias"]).reshape(-1, 1)).sum(axis=1)
    assert np.all(np.abs(counts - 600 * flat) < 1 + 1e-9)


def test_systematic_picks_no_draw_without_weight():
    log_weights = np.array([-np.inf, 0.0, -np.inf, np.log(3.0), -np.inf])
    picked = systematic(jax.random.key(1), log_weights, 400)
    assert np.bincount(picked, minlength=5).tolist() == [0, 100, 0, 300, 0]


def same(a, b):
    assert names_of(a) == names_of(b)
    for name in names_of(a):
        left, right = a[name], b[name]
        assert set(left.data_vars) == set(right.data_vars)
        for variable in left.data_vars:
            one, other = left[variable], right[variable]
            assert one.dims == other.dims
            np.testing.assert_array_equal(one.values, other.values)
            for dim in one.coords:
                assert list(one[dim].values) == list(other[dim].values)
        assert {k: v for k, v in left.attrs.items() if k != "created_at"} == {
            k: v for k, v in right.attrs.items() if k != "created_at"
        }


@pytest.mark.parametrize("name", ["nuts", "weighted", "point"])
def test_netcdf_round_trip(name, request, tmp_path):
    data = request.getfixturevalue(name).to_arviz(num_draws=20)
    path = str(tmp_path / "posterior.nc")
    data.to_netcdf(path)
    back = az.from_netcdf(path)
    same(data, back)
    assert back.attrs["inference_library"] == "ssmkit"
    assert "engine" in back.attrs


@pytest.mark.parametrize("name", ["nuts", "weighted", "point"])
def test_a_saved_posterior_exports_the_same(name, request, tmp_path):
    posterior = request.getfixturevalue(name)
    loaded = load_posterior(posterior.save(tmp_path / "posterior.ssm"), using=[toy])
    same(posterior.to_arviz(num_draws=20, key=1), loaded.to_arviz(num_draws=20, key=1))


def test_new_data_keep_parameters_and_states_joint(nuts):
    group = nuts.apply(FRAME + 1.0).to_arviz()["posterior"]
    assert group["states"].shape == (2, 60, T, 1)
    assert np.corrcoef(np.ravel(group["bias"]), np.ravel(group["states"][:, :, 3]))[0, 1] < -0.5


PERIODS = pd.period_range("1999Q1", periods=5, freq="Q")
INDEXES = {
    "periods": (PERIODS, PERIODS.to_timestamp()),
    "zone": (pd.date_range("2020", periods=5, tz="Europe/Paris"), None),
    "texts": (pd.Index(list("abcde")), list("abcde")),
    "numbers": (pd.Index([1.5, 2.5, 4.0, 5.0, 7.5]), [1.5, 2.5, 4.0, 5.0, 7.5]),
    "none": (None, [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_every_kind_of_index_survives_netcdf(kind, tmp_path):
    index, expected = INDEXES[kind]
    ys = np.arange(5.0) if index is None else pd.Series(np.arange(5.0), index=index)
    posterior = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0), ys)
    data = posterior.to_arviz(num_draws=3)
    expected = index.tz_convert(None) if expected is None else expected
    assert list(pd.Index(data["posterior"]["time"].values)) == list(expected)
    data.to_netcdf(str(tmp_path / "index.nc"))
    back = az.from_netcdf(str(tmp_path / "index.nc"))
    assert list(pd.Index(back["posterior"]["time"].values)) == list(expected)
    assert data["posterior"]["states"]["state"].values.tolist() == ["level"]


def test_names_of_observations_inputs_vectors_and_networks(tmp_path):
    frame = pd.DataFrame({"gdp": [1.0, 2.0, np.nan, 4, 5], "cpi": [0.0, np.nan, 1.0, 2, 3]})
    data = as_data(frame, {"price": np.arange(5.0)}, None, batched=False)
    posterior = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0), np.arange(5.0))
    network = eqx.filter(eqx.nn.MLP(1, 1, 2, 1, key=jax.random.key(0)), eqx.is_array)
    values = {"net$params": network, "a/b": jnp.arange(3.0), "time": jnp.ones(())}
    draws = Draws(jax.tree.map(lambda a: jnp.stack([a, a])[None], values), jnp.zeros((1, 2)))
    extra = {"params": draws, "state_index": jnp.zeros(1, int)}
    both = (data, posterior.parts | extra)
    data = eqx.tree_at(lambda p: (p.data, p.parts), posterior, both).to_arviz()
    group = data["posterior"]
    assert {"net.layers[0].weight", "a.b", "time_parameter", "states"} <= set(group.data_vars)
    assert group["a.b"].dims == ("chain", "draw", "a.b_dim_0")
    assert data["observed_data"]["observations"]["observation"].values.tolist() == ["gdp", "cpi"]
    np.testing.assert_array_equal(data["observed_data"]["observations"].values, frame.to_numpy())
    np.testing.assert_array_equal(data["constant_data"]["inputs['price']"].values, np.arange(5.0))
    data.to_netcdf(str(tmp_path / "names.nc"))
    same(data, az.from_netcdf(str(tmp_path / "names.nc")))


def test_finite_states_are_integers():
    model = sk.models.DiscreteHMM.poisson([0.5, 0.5], [[0.9, 0.1], [0.2, 0.8]], [1.0, 5.0])
    ys = np.array([0, 1, 6, 7, 1])
    posterior = sk.infer(
        0, sk.ForwardBackward(), model, ys, observed=np.array([1, 1, 0, 1, 1], bool)
    )
    data = posterior.to_arviz(num_draws=2000)
    states = data["posterior"]["states"]
    assert states.dims == ("chain", "draw", "time")
    assert states.dtype.kind == "i"
    share = states.values.mean(axis=(0, 1))
    exact = posterior.states.probabilities()[:, 1]
    assert np.all(np.abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / 2000) + 1e-12)
    assert np.isnan(data["observed_data"]["observations"].values).tolist() == [0, 0, 1, 0, 0]


def test_parameters_alone_when_states_were_not_kept(laplace):
    kept = {"params", "diagnostics", "final", "carry", "state_log_weights"}
    parts = {name: part for name, part in laplace.parts.items() if name in kept}
    posterior = eqx.tree_at(lambda p: p.parts, laplace, parts)
    data = posterior.to_arviz(num_draws=1500)
    assert set(data["posterior"].data_vars) == {"bias", "drift"}
    np.testing.assert_array_equal(data["posterior"]["bias"], posterior.params["bias"])
    plain = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1.0, 1.0), np.arange(5.0), keep="final")
    with pytest.raises(sk.errors.NotComputed, match='keep="all"'):
        plain.to_arviz()


def test_refusals(point):
    with pytest.raises(sk.errors.OptionError, match="num_draws"):
        point.to_arviz(num_draws=0)
    batch = eqx.tree_at(lambda p: p.parts, point, point.parts | {"batch": jnp.arange(2)})
    with pytest.raises(sk.errors.EngineError, match=r"posterior\[0\]"):
        batch.to_arviz()
