"""Programs: every site has a value, networks included, and captured arrays are traced."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module

import ssmkit as sk
from ssmkit.errors import ModelError, ParameterError
from ssmkit.models import programs

POSITIVE = dist.constraints.positive


def both():
    level = numpyro.param("level", 2.0, constraint=POSITIVE)
    noise = numpyro.sample("noise", dist.Gamma(2.0, 1.0))
    numpyro.factor("extra", -0.5 * noise)
    return sk.models.LocalLevel(level, noise)


def test_sites_say_what_they_are():
    sites = programs.free_sites(sk.program(both))
    assert {name: site.kind for name, site in sites.items()} == {
        "level": "param",
        "noise": "sample",
    }
    assert sites["level"].value == 2.0


def test_prior_counts_sample_sites_and_factors_in_constrained_space():
    values = {"level": jnp.array(3.0), "noise": jnp.array(1.5)}
    model, log_prior = programs.build_with_prior(sk.program(both), values)
    assert model.level_variance == 3.0 and model.noise_variance == 1.5
    expected = dist.Gamma(2.0, 1.0).log_prob(1.5) - 0.75
    assert jnp.allclose(log_prior, expected)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"level": 1.0}, "'noise'"),
        ({"level": 1.0, "noise": 1.0, "nosie": 1.0}, "'nosie'"),
        ({"levle": 1.0, "noise": 1.0}, "'level'"),
    ],
)
def test_missing_and_misspelt_sites_are_named_and_never_drawn(values, name):
    with pytest.raises(ParameterError, match=name):
        programs.build(sk.program(both), values)


def test_a_program_must_return_a_model():
    with pytest.raises(ModelError, match="must return a model"):
        programs.free_sites(sk.program(lambda: 3))


def test_data_must_fit_the_signature():
    with pytest.raises(ParameterError, match="cannot be called"):
        sk.program(both, jnp.ones(3))


def test_unconstrain_inverts_constrain_and_scores_its_jacobian():
    sites = programs.free_sites(sk.program(both))
    z = {"level": jnp.array(0.3), "noise": jnp.array(-0.7)}
    values = programs.constrain(sites, z)
    back = programs.unconstrain(sites, values)
    assert all(jnp.allclose(back[k], z[k]) for k in z)
    # both sites are positive, mapped by exp: the log Jacobian is the sum of the arguments
    assert jnp.allclose(programs.log_jacobian(sites, z), -0.4)


def test_captured_arrays_are_traced_and_not_frozen():
    """The same program with other data must not reuse compiled numbers."""

    def scaled(scale):
        return sk.models.LocalLevel(numpyro.param("level", 1.0, constraint=POSITIVE) * scale, 1.0)

    ys = jnp.array([0.1, 0.5, -0.2, 0.9])
    engine = sk.GradientFit(evidence=sk.Kalman(), num_starts=1, max_steps=1)
    values = []
    for scale in (1.0, 5.0):
        fit = sk.infer(0, engine, sk.program(scaled, jnp.array(scale)), ys, progress=False)
        model = sk.models.LocalLevel(fit.params["level"].item() * scale, 1.0)
        exact = sk.log_evidence(jax.random.key(0), sk.Kalman(), model, ys)
        assert jnp.allclose(fit.log_evidence, exact)
        values.append(float(exact))
    assert values[0] != values[1]


class Drift(sk.StateSpaceModel):
    net: eqx.nn.MLP

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(self.net(x), 0.3)

    def emission(self, x, u):
        return dist.Normal(x, 0.1)


def test_networks_in_a_program_are_learned():
    net = eqx.nn.MLP("scalar", "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))

    def program():
        return Drift(eqx_module("net", net))

    key = jax.random.key(1)
    x, ys = 0.5, []
    for t in range(60):  # a logistic-like map that no linear drift follows
        x = jnp.tanh(2.5 * x) + 0.3 * jax.random.normal(jax.random.fold_in(key, t))
        ys.append(x)
    ys = jnp.stack(ys)
    before = sk.infer(0, sk.ExtendedKalman(), Drift(net), ys).log_evidence
    engine = sk.GradientFit(evidence=sk.ExtendedKalman(), num_starts=1, max_steps=60)
    fit = sk.infer(0, engine, program, ys, progress=False)
    assert fit.log_evidence > before + 20
    assert eqx.is_array(jax.tree.leaves(fit.params["net$params"])[0])
    assert "net$params" in fit.estimates.names[0]
