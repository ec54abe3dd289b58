"""Point fits against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats

import ssmkit as sk

POSITIVE = dist.constraints.positive


def nile_level():
    return sk.models.LocalLevel(
        level_variance=numpyro.param("level", 1e3, constraint=POSITIVE),
        noise_variance=numpyro.param("noise", 1e4, constraint=POSITIVE),
    )


@pytest.fixture(scope="module")
def nile():
    engine = sk.GradientFit(evidence=sk.Kalman())
    return sk.infer(0, engine, nile_level, sk.data.load("nile"), progress=False)


def point(fit, name):
    return fit.params[name].item()


def test_nile_variances_to_three_digits(nile):
    # Durbin and Koopman (2012), section 2.10.3
    assert f"{point(nile, 'noise'):.3g}" == f"{15099:.3g}"
    assert f"{point(nile, 'level'):.3g}" == f"{1469.1:.3g}"
    assert nile.diagnostics["converged"]


def test_standard_errors_are_those_of_a_numerical_information_matrix(nile):
    ys = jnp.asarray(sk.data.load("nile").to_numpy())

    def value(theta):
        model = sk.models.LocalLevel(theta[0], theta[1])
        return sk.log_evidence(jax.random.key(0), sk.Kalman(), model, ys)

    theta = np.array([point(nile, "level"), point(nile, "noise")])
    step = 1e-3 * theta
    run = jax.jit(jax.vmap(value))
    offsets = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1], [1, 0], [-1, 0], [0, 1], [0, -1]])
    f = np.asarray(run(jnp.asarray(theta + offsets * step)))
    centre = float(run(jnp.asarray(theta[None]))[0])
    hessian = np.empty((2, 2))
    hessian[0, 1] = hessian[1, 0] = (f[0] - f[1] - f[2] + f[3]) / (4 * step[0] * step[1])
    hessian[0, 0] = (f[4] - 2 * centre + f[5]) / step[0] ** 2
    hessian[1, 1] = (f[6] - 2 * centre + f[7]) / step[1] ** 2
    expected = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    assert nile.estimates.names == ("level", "noise")
    np.testing.assert_allclose(nile.estimates.standard_errors, expected, rtol=2e-3)


class Noise(sk.StateSpaceModel):
    """Independent N(mean, variance): everything about it is known in closed form."""

    mean: jax.Array
    variance: jax.Array

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.0 * x, 1.0)

    def emission(self, x, u):
        return dist.Normal(self.mean + 0.0 * x, jnp.sqrt(self.variance))


YS = np.random.default_rng(3).normal(1.0, 2.0, size=40)


def test_mode_uses_the_constrained_density_without_jacobian():
    def program():
        return Noise(0.0, numpyro.sample("variance", dist.InverseGamma(3.0, 4.0)))

    fit = sk.infer(0, sk.GradientFit(sk.Kalman()), program, YS, progress=False)
    expected = (4.0 + 0.5 * np.sum(YS**2)) / (3.0 + 0.5 * YS.size + 1)
    assert point(fit, "variance") == pytest.approx(expected, rel=1e-5)


def test_laplace_is_exact_for_a_normal_posterior():
    def program():
        return Noise(numpyro.sample("mean", dist.Normal(0.0, 3.0)), jnp.array(4.0))

    engine = sk.GradientFit(sk.Kalman(), laplace_draws=4000, num_starts=1)
    fit = sk.infer(1, engine, program, YS, progress=False)
    precision = 1 / 9 + YS.size / 4
    mean, std = YS.sum() / 4 / precision, precision**-0.5
    draws = np.asarray(fit.params["mean"]).ravel()
    assert abs(draws.mean() - mean) < 5 * std / np.sqrt(draws.size)
    assert abs(draws.std() / std - 1) < 5 / np.sqrt(2 * draws.size)
    cov = 4 * np.eye(YS.size) + 9.0
    exact = scipy.stats.multivariate_normal(np.zeros(YS.size), cov).logpdf(YS)
    assert float(fit.log_evidence) == pytest.approx(exact, abs=1e-6)
    assert (fit.evidence_kind, fit.evidence_of) == ("approximate", "data")


def test_a_point_fit_says_that_its_evidence_is_conditional(nile):
    assert (nile.evidence_kind, nile.evidence_of) == ("exact", "data given parameters")
    assert "exact, of data given parameters" in repr(nile.summary())


def test_a_boundary_optimum_is_said_in_words():
    # alternating data: any movement of the level makes the fit worse
    ys = np.resize([1.0, -1.0], 60) + 0.1 * np.random.default_rng(0).normal(size=60)

    def program():
        return sk.models.LocalLevel(
            numpyro.param("level", 0.5, constraint=POSITIVE),
            numpyro.param("noise", 0.5, constraint=POSITIVE),
        )

    fit = sk.infer(0, sk.GradientFit(sk.Kalman()), program, ys, progress=False)
    level, noise = fit.estimates.standard_errors
    assert point(fit, "level") < 1e-3
    assert np.isnan(level) and np.isfinite(noise)
    assert any("level" in w and "boundary" in w for w in fit.estimates.warnings)
    assert "boundary" in repr(fit.summary())


def test_parameters_that_the_data_cannot_tell_apart_are_named():
    def program():
        a = numpyro.param("a", 1.0, constraint=POSITIVE)
        b = numpyro.param("b", 2.0, constraint=POSITIVE)
        return Noise(0.0, a * b)

    fit = sk.infer(0, sk.GradientFit(sk.Kalman(), num_starts=1), program, YS, progress=False)
    assert point(fit, "a") * point(fit, "b") == pytest.approx(np.mean(YS**2), rel=1e-4)
    assert np.isnan(fit.estimates.standard_errors).all()
    assert any("a, b" in w for w in fit.estimates.warnings)


def variance_program():
    return Noise(0.0, numpyro.param("variance", 1.0, constraint=POSITIVE))


def test_any_optax_optimiser_reaches_the_same_optimum():
    engine = sk.GradientFit(
        sk.Kalman(), optimizer=sk.optimizer(optax.adam, 0.05), num_starts=1, max_steps=800
    )
    fit = sk.infer(0, engine, variance_program, YS, progress=False)
    assert point(fit, "variance") == pytest.approx(np.mean(YS**2), rel=1e-3)


def test_many_series_add_their_evidences():
    engine = sk.GradientFit(sk.Kalman(), num_starts=1)
    fit = sk.infer(0, engine, variance_program, YS.reshape(4, 10), batched=True, progress=False)
    assert point(fit, "variance") == pytest.approx(np.mean(YS**2), rel=1e-5)
    ragged = sk.infer(0, engine, variance_program, [YS[:25], YS[25:]], progress=False)
    assert point(ragged, "variance") == pytest.approx(np.mean(YS**2), rel=1e-5)
    assert ragged[1].states.mean().shape == (15,)


def test_an_interrupt_returns_what_was_learned():
    def stop(event):
        if event["step"] >= 2:
            raise KeyboardInterrupt

    engine = sk.GradientFit(sk.Kalman(), num_starts=2)
    start = sk.infer(0, sk.Kalman(), Noise(jnp.array(0.0), jnp.array(1.0)), YS).log_evidence
    fit = sk.infer(0, engine, variance_program, YS, progress=False, callback=stop)
    assert fit.diagnostics["interrupted"] and not fit.diagnostics["converged"]
    assert fit.log_evidence > start
    assert any("interrupted" in w for w in fit.estimates.warnings)


def test_a_callback_that_returns_true_stops():
    seen = []
    engine = sk.GradientFit(sk.Kalman(), num_starts=1)
    sk.infer(
        0, engine, variance_program, YS, progress=False, callback=lambda e: seen.append(e) or True
    )
    assert len(seen) == 1


def test_float32_fits_reach_the_same_optimum():
    def program():
        start = jnp.asarray(1.0, jnp.float32)
        return Noise(jnp.float32(0.0), numpyro.param("variance", start, constraint=POSITIVE))

    ys = YS.astype(np.float32)
    fit = sk.infer(0, sk.GradientFit(sk.Kalman(), num_starts=1), program, ys, progress=False)
    assert point(fit, "variance") == pytest.approx(np.mean(YS**2), rel=1e-3)


def test_no_finite_start_is_a_named_error():
    def program():
        return Noise(0.0, numpyro.param("variance", -1.0))

    with pytest.raises(sk.errors.NonFiniteError, match="not finite at any start"):
        sk.infer(0, sk.GradientFit(sk.Kalman(), num_starts=1), program, YS, progress=False)


def test_laplace_states_carry_parameter_uncertainty(nile):
    engine = sk.GradientFit(sk.Kalman(), laplace_draws=200, num_starts=1)
    fit = sk.infer(0, engine, nile_level, sk.data.load("nile"), progress=False)
    assert fit.states.sample(0, 5).shape == (5, 100, 1)
    assert float(jnp.mean(fit.states.std())) > float(jnp.mean(nile.states.std()))


def test_a_fit_goes_on_from_what_was_learned(nile):
    engine = sk.GradientFit(evidence=sk.Kalman(), num_starts=1)
    fit = sk.infer(
        0, engine, nile_level, sk.data.load("nile"), learned=nile.learned, progress=False
    )
    assert fit.diagnostics["steps"] <= 4 < nile.diagnostics["steps"]
    assert float(fit.log_evidence) == pytest.approx(float(nile.log_evidence), abs=1e-8)


def test_learned_pieces_must_fit_engine_and_program(nile):
    with pytest.raises(sk.errors.OptionError, match="does not learn"):
        sk.infer(0, sk.Kalman(), Noise(jnp.array(0.0), jnp.array(1.0)), YS, learned=nile.learned)
    with pytest.raises(sk.errors.OptionError, match="does not fit the program"):
        sk.infer(0, sk.GradientFit(sk.Kalman()), variance_program, YS, learned=nile.learned)


def test_draws_of_a_ragged_batch_can_be_taken_apart():
    def program():
        return sk.models.LocalLevel(numpyro.param("level", 1.0, constraint=POSITIVE), 1.0)

    rng = np.random.default_rng(1)
    series = [np.cumsum(rng.normal(size=n)) + rng.normal(size=n) for n in (25, 15)]
    engine = sk.GradientFit(sk.Kalman(), num_starts=1, laplace_draws=8)
    fit = sk.infer(0, engine, program, series, progress=False)
    alone = fit[1]
    assert alone.filtered.mean().shape == alone.states.mean().shape == (15, 1)
    assert alone.states.sample(0, 3).shape == (3, 15, 1)
    direct = jnp.mean(
        jnp.stack(
            [
                sk.infer(0, sk.Kalman(), sk.models.LocalLevel(v, 1.0), series[1]).states.mean()
                for v in fit.params["level"].ravel()
            ]
        ),
        axis=0,
    )
    np.testing.assert_allclose(alone.states.mean(), direct, rtol=1e-6)
    np.testing.assert_allclose(alone.final.mean(), alone.filtered.mean()[-1])
