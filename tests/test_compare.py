"""Comparisons refuse what does not belong together, and label the rest."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit.errors import ComparisonError, NotComputed

NILE = sk.data.load("nile")
POSITIVE = dist.constraints.positive


def level(prior):
    def program():
        if prior:
            noise = numpyro.sample("noise", dist.Gamma(2.0, 1e-4))
        else:
            noise = numpyro.param("noise", 1e4, constraint=POSITIVE)
        return sk.models.LocalLevel(1469.0, noise)

    return program


@pytest.fixture(scope="module")
def rows():
    states = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0), NILE)
    engine = sk.GradientFit(sk.Kalman(), num_starts=1)
    fit = sk.infer(0, engine, level(prior=False), NILE, progress=False)
    laplace = sk.GradientFit(sk.Kalman(), num_starts=1, laplace_draws=20)
    marginal = sk.infer(0, laplace, level(prior=True), NILE, progress=False)
    return {"fixed": states, "fitted": fit, "marginal": marginal}


def test_rows_are_ranked_and_labelled(rows):
    table = sk.compare({name: rows[name] for name in ("fixed", "fitted")})
    assert table.index.tolist() == ["fitted", "fixed"]
    assert table["kind"].tolist() == ["exact", "exact"]
    best = table.loc["fitted"]
    assert best["AIC"] == pytest.approx(2 - 2 * best["log evidence"])
    assert best["BIC"] == pytest.approx(np.log(100) - 2 * best["log evidence"])
    assert np.isnan(table.loc["fixed", "AIC"])


def test_evidences_of_different_things_are_not_mixed(rows):
    with pytest.raises(ComparisonError, match=r"marginal: of data\n.*expected"):
        sk.compare({name: rows[name] for name in ("fitted", "marginal")})


def test_other_data_are_refused(rows):
    shorter = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0), NILE[:50])
    gaps = NILE.copy()
    gaps.iloc[3] = np.nan
    gappy = sk.infer(0, sk.Kalman(), sk.models.LocalLevel(1469.0, 15099.0), gaps)
    for other in (shorter, gappy):
        with pytest.raises(ComparisonError, match="different data"):
            sk.compare({"fixed": rows["fixed"], "other": other})


def test_one_posterior_is_no_comparison(rows):
    with pytest.raises(ComparisonError, match="at least two"):
        sk.compare({"fixed": rows["fixed"]})


def test_information_criteria_belong_to_maximum_likelihood_only(rows):
    engine = sk.GradientFit(sk.Kalman(), num_starts=1)
    mode = sk.infer(0, engine, level(prior=True), NILE, progress=False)
    assert "AIC" in repr(rows["fitted"].summary())
    assert "AIC" not in repr(mode.summary())
    with pytest.raises(NotComputed):
        _ = rows["fixed"].params
