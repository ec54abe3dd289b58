"""The missing-data contract against dense conditionals, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from ssmkit.errors import MissingDataError
from ssmkit.models.base import StateSpaceModel, log_joint
from ssmkit.models.observation import observed_log_prob, observed_mask, supports_coordinates

LOC = np.array([0.5, -1.0, 2.0])
COV = np.array([[2.0, 0.9, -0.4], [0.9, 1.0, 0.3], [-0.4, 0.3, 1.5]])
Y = np.array([0.1, 0.3, 1.2])
MASKS = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1]]
WEIGHTS = np.array([0.3, 0.7])
LOCS = np.stack([LOC, -LOC])

score = jax.jit(observed_log_prob)


def tril():
    return jnp.asarray(np.linalg.cholesky(COV))


def normal_reference(mask, loc=LOC, cov=COV):
    keep = np.array(mask, bool)
    return scipy.stats.multivariate_normal(loc[keep], cov[np.ix_(keep, keep)]).logpdf(Y[keep])


def student_reference(mask):
    keep = np.array(mask, bool)
    shape = COV[np.ix_(keep, keep)]
    return scipy.stats.multivariate_t(LOC[keep], shape, df=5.0).logpdf(Y[keep])


def low_rank():
    factor = np.array([[1.0], [0.5], [-0.2]])
    diagonal = np.array([0.4, 0.6, 1.1])
    law = dist.LowRankMultivariateNormal(
        jnp.asarray(LOC), jnp.asarray(factor), jnp.asarray(diagonal)
    )
    return law, lambda m: normal_reference(m, cov=factor @ factor.T + np.diag(diagonal))


def independent():
    law = dist.Normal(jnp.asarray(LOC), jnp.sqrt(jnp.diagonal(COV))).to_event(1)
    return law, lambda m: normal_reference(m, cov=np.diag(np.diag(COV)))


def mixture():
    parts = dist.MultivariateNormal(jnp.asarray(LOCS), scale_tril=jnp.stack([tril(), tril()]))
    law = dist.MixtureSameFamily(dist.Categorical(probs=jnp.asarray(WEIGHTS)), parts)
    return law, mixture_reference


def mixture_reference(mask):
    logs = [normal_reference(mask, loc=loc) for loc in LOCS]
    return np.log(np.sum(WEIGHTS * np.exp(logs)))


def general_mixture():
    parts = [
        dist.MultivariateNormal(jnp.asarray(LOC), scale_tril=tril()),
        dist.MultivariateStudentT(5.0, jnp.asarray(LOC), tril()),
    ]
    law = dist.MixtureGeneral(dist.Categorical(probs=jnp.asarray(WEIGHTS)), parts)

    def reference(mask):
        logs = [normal_reference(mask), student_reference(mask)]
        return np.log(np.sum(WEIGHTS * np.exp(logs)))

    return law, reference


def twice_independent():
    # an event axis over an event axis: the mask must reach the scalars below both
    return independent()[0].base_dist.to_event(0).expand((3,)).to_event(1), independent()[1]


LAWS = {
    "normal": lambda: (
        dist.MultivariateNormal(jnp.asarray(LOC), scale_tril=tril()),
        normal_reference,
    ),
    "student": lambda: (
        dist.MultivariateStudentT(5.0, jnp.asarray(LOC), tril()),
        student_reference,
    ),
    "low rank": low_rank,
    "independent": independent,
    "expanded": twice_independent,
    "mixture": mixture,
    "general mixture": general_mixture,
}


@pytest.mark.parametrize("name", LAWS)
def test_coordinates_agree_with_the_dense_marginal(name):
    law, reference = LAWS[name]()
    assert supports_coordinates(law)
    for mask in MASKS:
        y = np.where(mask, Y, np.nan)
        value = score(law, y, np.array(mask, bool))
        np.testing.assert_allclose(value, reference(mask), rtol=1e-10, err_msg=str(mask))
    # dropping the whole row instead would not pass
    assert abs(reference([1, 0, 1])) > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_nothing_observed_is_exactly_zero(name):
    law, _ = LAWS[name]()
    nothing = np.zeros(3, bool)
    assert float(score(law, np.full(3, np.nan), nothing)) == 0.0


@pytest.mark.parametrize("name", ["student", "independent", "mixture"])
def test_gradients_are_finite_and_those_of_the_marginal(name):
    law, _ = LAWS[name]()
    leaves, tree = jax.tree.flatten(law)
    mask = np.array([True, False, True])

    @jax.jit
    @jax.grad
    def slope(leaves, y):
        return observed_log_prob(jax.tree.unflatten(tree, leaves), y, mask)

    with_nan = slope(leaves, np.where(mask, Y, np.nan))
    with_number = slope(leaves, np.where(mask, Y, 77.0))
    for a, b in zip(with_nan, with_number, strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_array_equal(a, b)


def test_inner_event_axes_are_masked_one_by_one():
    base = dist.Normal(jnp.arange(6.0).reshape(2, 3), 1.0)
    law = dist.Independent(dist.Independent(base, 1), 1)
    y = np.ones((2, 3))
    mask = np.array([[True, False, True], [False, False, True]])
    terms = scipy.stats.norm(np.arange(6.0).reshape(2, 3)).logpdf(y)
    np.testing.assert_allclose(score(law, y, mask), terms[mask].sum(), rtol=1e-12)


def test_whole_rows_are_filled_inside_the_support():
    def slope(concentration):
        return observed_log_prob(dist.Gamma(concentration, 1.0), jnp.nan, jnp.array(False))

    assert float(jax.jit(jax.grad(slope))(2.0)) == 0.0
    row = jnp.full(3, jnp.nan)

    @jax.jit
    @jax.grad
    def gradient(c):
        return observed_log_prob(dist.Dirichlet(c), row, jnp.array(False))

    assert np.all(np.asarray(gradient(jnp.ones(3))) == 0)


def test_integers_with_a_mask():
    law = dist.Poisson(jnp.array([1.0, 2.0])).to_event(1)
    y = jnp.array([3, -999])
    value = score(law, y, jnp.array([True, False]))
    np.testing.assert_allclose(value, scipy.stats.poisson(1.0).logpmf(3), rtol=1e-12)
    coin = dist.Categorical(probs=jnp.array([0.2, 0.8]))
    assert float(score(coin, jnp.array(-1), jnp.array(False))) == 0.0
    np.testing.assert_allclose(score(coin, jnp.array(1), jnp.array(True)), np.log(0.8))


def test_laws_without_marginals_are_refused_by_name():
    law = dist.Dirichlet(jnp.ones(3))
    assert not supports_coordinates(law)
    with pytest.raises(MissingDataError, match=r"(?s)Dirichlet.*fix:.*\(T,\)"):
        observed_log_prob(law, jnp.ones(3) / 3, jnp.array([True, False, True]))


class Shares(StateSpaceModel):
    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(x, 1.0)

    def emission(self, x, u):
        return dist.Dirichlet(jnp.exp(jnp.stack([x, -x])))


def test_log_joint_refuses_part_of_a_row_without_marginals():
    xs = jnp.zeros(2)
    ys = jnp.array([[0.3, 0.7], [jnp.nan, jnp.nan]])
    one = Shares().emission(xs[0], None).log_prob(ys[0])
    walk = 2 * dist.Normal(0.0, 1.0).log_prob(0.0)
    np.testing.assert_allclose(jax.jit(log_joint)(Shares(), xs, ys), one + walk, rtol=1e-12)
    with pytest.raises(MissingDataError):
        log_joint(Shares(), xs, ys.at[1, 0].set(0.5))


def test_masks_broadcast_over_rows_and_join_with_nan():
    ys = jnp.array([[1.0, jnp.nan], [3.0, 4.0], [5.0, 6.0]])
    rows = np.array([True, False, True])
    expected = [[True, False], [False, False], [True, True]]
    np.testing.assert_array_equal(observed_mask(ys, rows, 1), expected)
    np.testing.assert_array_equal(observed_mask(ys, None, 1), ~np.isnan(ys))
    integers = jnp.ones((3, 2), int)
    assert observed_mask(integers, None, 1) is None
    np.testing.assert_array_equal(observed_mask(integers, rows, 1), np.stack([rows, rows], 1))
    np.testing.assert_array_equal(observed_mask(ys[0], np.array(True), 1, start=0), [True, False])
