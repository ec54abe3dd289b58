"""Finite models: filter, smoother, paths and Viterbi against the sum over all paths."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from enumeration import enumerate_paths, filtered_and_predicted
from scipy import stats

from ssmkit import hidden_markov as hmm
from ssmkit.errors import ModelError
from ssmkit.models.base import StateSpaceModel

LENGTH, STATES = 6, 3
RNG = np.random.default_rng(0)
INITIAL = np.array([0.5, 0.3, 0.2])
DENSE = RNG.dirichlet(np.ones(STATES), (LENGTH, STATES))
SPARSE = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.5, 0.0, 0.5]])
MEANS = RNG.normal(size=(STATES, 2))
CORRELATED = np.array([[1.0, 0.8], [0.8, 1.5]])
YS = RNG.normal(size=(LENGTH, 2))


class Chain(StateSpaceModel):
    """A chain whose laws are tables of probabilities, or of unnormalised logarithms of them."""

    initial_probs: jax.Array
    table: jax.Array
    means: jax.Array
    noise: jax.Array
    as_logits: bool = eqx.field(static=True, default=False)

    def law(self, row):
        return dist.Categorical(**{"logits" if self.as_logits else "probs": row})

    def initial(self, u):
        return self.law(self.initial_probs)

    def transition(self, x, u):
        return self.law(self.table[x])

    def emission(self, x, u):
        return dist.MultivariateNormal(self.means[x], self.noise)


class Independent(Chain):
    def emission(self, x, u):
        return dist.Normal(self.means[x], jnp.sqrt(jnp.diagonal(self.noise))).to_event(1)


class Varying(Chain):
    """The table has the time in front."""

    def at(self, t):
        return Chain(self.initial_probs, self.table[t], self.means, self.noise)


class Driven(Chain):
    """The input is the table of the step, and a shift of the emission."""

    def transition(self, x, u):
        return self.law(u[0][x])

    def emission(self, x, u):
        return dist.MultivariateNormal(self.means[x] + u[1], self.noise)


def chain(kind=Chain, table=DENSE[0], noise=CORRELATED):
    return kind(*map(jnp.asarray, (INITIAL, table, MEANS, noise)))


def as_logits(model):
    initial, table = jnp.log(model.initial_probs) + 3.0, jnp.log(model.table) - 2.0
    return Chain(initial, table, model.means, model.noise, as_logits=True)


SHIFTS = RNG.normal(size=(LENGTH, 2))
DIAGONAL = np.diag([0.5, 2.0])
CASES = {
    "constant": (chain(), None, DENSE[:1], 0.0, CORRELATED),
    "independent": (chain(Independent, noise=DIAGONAL), None, DENSE[:1], 0.0, DIAGONAL),
    "sparse": (chain(table=SPARSE), None, SPARSE[None], 0.0, CORRELATED),
    "sparse logits": (as_logits(chain(table=SPARSE)), None, SPARSE[None], 0.0, CORRELATED),
    "time-varying": (chain(Varying, DENSE), None, DENSE, 0.0, CORRELATED),
    "inputs": (chain(Driven), (DENSE, SHIFTS), DENSE, SHIFTS, CORRELATED),
}


def pattern(*missing):
    mask = np.ones((LENGTH, 2), bool)
    for entry in missing:
        mask[entry] = False
    return mask


PATTERNS = {
    "none": pattern(),
    "rows": pattern(2, 3),
    "coordinates": pattern((1, 0), (4, 1), (5, 0)),
    "first row": pattern(0),
    "last row": pattern(-1),
    "everything": pattern(slice(None)),
}

every_case = pytest.mark.parametrize("case", CASES)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def log_emission_table(ys, mask, shifts, noise):
    """Normal marginals of the observed coordinates, by scipy."""
    means = MEANS + np.broadcast_to(shifts, (len(ys), 2))[:, None]
    table = np.zeros((len(ys), STATES))
    for (t, k), _ in np.ndenumerate(table):
        seen = mask[t]
        if seen.any():
            law = stats.multivariate_normal(means[t, k, seen], noise[np.ix_(seen, seen)])
            table[t, k] = law.logpdf(ys[t, seen])
    return table


def reference(case, mask):
    _, _, transition, shifts, noise = CASES[case]
    transition = np.broadcast_to(transition, (LENGTH, STATES, STATES))
    return INITIAL, transition, log_emission_table(YS, mask, shifts, noise)


@jax.jit
def run(model, ys, us, mask):
    kernel = hmm.finite_kernel(model, us)
    state, steps = hmm.filter_finite(kernel, ys, us, mask, keep=True)
    paths = hmm.categorical_paths(kernel, steps)
    short, _ = hmm.filter_finite(kernel, ys, us, mask, keep=False)
    return state, steps, paths, paths.marginals(), paths.most_likely(), short.log_evidence


@jax.jit
def evidence(model, ys, us=None, mask=None):
    kernel = hmm.finite_kernel(model, us)
    return hmm.filter_finite(kernel, ys, us, mask, keep=False)[0].log_evidence


@functools.cache
def runs(case):
    """Every pattern of a case in one compiled call; what is missing is nan."""
    model, us, *_ = CASES[case]
    masks = np.stack(list(PATTERNS.values()))
    many = jax.jit(jax.vmap(lambda y, m: run(model, y, us, m)))
    out = many(np.where(masks, YS, np.nan), masks)
    return {n: jax.tree.map(lambda a, i=i: a[i], out) for i, n in enumerate(PATTERNS)}


@every_case
@every_pattern
def test_every_number_is_the_sum_over_paths(case, pattern):
    terms = reference(case, PATTERNS[pattern])
    state, steps, _, marginals, best, short = runs(case)[pattern]
    paths = enumerate_paths(*terms)
    filtered, predicted, log_likelihood = filtered_and_predicted(*terms)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    close(state.log_evidence, paths.log_evidence)
    close(short, paths.log_evidence)
    close(steps.log_likelihood, log_likelihood)
    close(np.exp(steps.predicted), predicted)
    close(np.exp(steps.filtered), filtered)
    close(np.exp(marginals), paths.marginals)
    chosen = np.flatnonzero((paths.paths == np.asarray(best)).all(axis=1))[0]
    close(paths.log_joint[chosen], paths.log_joint.max())
    if pattern != "everything":
        np.testing.assert_array_equal(best, paths.most_likely)


@every_case
def test_terms(case):
    model, us, transition, shifts, noise = CASES[case]
    mask = PATTERNS["rows"]
    ys = np.where(mask, YS, np.nan)
    initial, log_transition, log_emission = jax.jit(hmm.finite_terms)(
        model, jnp.asarray(ys), us, mask
    )
    np.testing.assert_allclose(np.exp(initial), INITIAL, rtol=1e-14)
    expected = transition[1:] if len(transition) > 1 else transition[0]
    assert log_transition.shape == expected.shape
    np.testing.assert_allclose(np.exp(log_transition), expected, rtol=1e-14)
    reference_table = log_emission_table(YS, mask, shifts, noise)
    np.testing.assert_allclose(log_emission, reference_table, rtol=1e-12)
    assert (log_emission[2:4] == 0).all()
    by_row = jax.jit(hmm.finite_terms)(model, jnp.asarray(ys), us, mask.all(axis=1))[2]
    np.testing.assert_allclose(by_row, log_emission, rtol=1e-13)


class Counts(Chain):
    def emission(self, x, u):
        return dist.Poisson(jnp.exp(self.means[x, 0]))


def test_integer_data_with_a_mask_and_a_single_row():
    ys, mask = np.array([0, 3, 1, 2, 0, 1]), np.array([1, 0, 1, 1, 0, 1], bool)
    table = np.where(mask[:, None], stats.poisson(np.exp(MEANS[:, 0])).logpmf(ys[:, None]), 0.0)
    transition = np.broadcast_to(DENSE[0], (LENGTH, STATES, STATES))
    for length in (LENGTH, 1):
        got = evidence(chain(Counts), ys[:length], mask=mask[:length])
        expected = enumerate_paths(INITIAL, transition[:length], table[:length]).log_evidence
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    out = run(chain(Counts), ys[:1], None, None)
    assert out[3].shape == (1, STATES) and out[4].shape == (1,)
    assert out[2].sample(jax.random.key(0), 5).shape == (5, 1)


@pytest.mark.parametrize("case", ["sparse", "time-varying"])
@pytest.mark.parametrize("seed", range(3))
def test_paths_are_drawn_with_their_probabilities(case, seed):
    paths = enumerate_paths(*reference(case, PATTERNS["coordinates"]))
    num_paths = 20_000
    draw = jax.jit(lambda key: runs(case)["coordinates"][2].sample(key, num_paths))
    drawn = np.asarray(draw(jax.random.key(seed)))
    codes = drawn @ STATES ** np.arange(LENGTH)[::-1]
    counts = np.bincount(codes, minlength=len(paths.paths))
    expected = num_paths * paths.probabilities
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert len(counts) > 20
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_no_two_draws_share_their_noise():
    third = chain(table=np.full((3, 3), 1 / 3))

    @jax.jit
    def draw(key):
        return run(third, np.zeros((200, 2)), None, np.zeros(200, bool))[2].sample(key, 50)

    paths = np.asarray(draw(jax.random.key(0)))
    agree = (paths[:, None] == paths[None]).mean(axis=-1)[np.triu_indices(50, 1)]
    shifted = (paths[:, 1:] == paths[:, :-1]).mean()
    # a third of the entries agree by chance; five standard errors around it
    error = 5 * np.sqrt(2 / 9 / 200)
    assert abs(agree - 1 / 3).max() < error and abs(shifted - 1 / 3) < error


def parametrised(theta, kind):
    """A sparse chain whose nonzero entries, means and noise all depend on theta."""
    table = jnp.where(SPARSE > 0, theta[:9].reshape(3, 3), -jnp.inf)
    initial = jnp.append(theta[12:14], -jnp.inf)
    if kind == "probs":
        table, initial = jax.nn.softmax(table, axis=1), jax.nn.softmax(initial)
    noise = jnp.eye(2) * jnp.exp(theta[9]) + 0.3
    return Chain(initial, table, MEANS + theta[10:12], noise, as_logits=kind == "logits")


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_gradients_agree_with_finite_differences(kind):
    theta = jnp.asarray(np.random.default_rng(3).normal(size=14))
    masks = np.stack([PATTERNS[n] for n in ("none", "coordinates", "rows", "everything")])
    data = np.where(masks, YS, np.nan)

    def values(theta):
        model = parametrised(theta, kind)
        out = jax.vmap(lambda y, m: evidence(model, y, mask=m))(data, masks)
        return out, out

    both = jax.jit(jax.jacrev(values, has_aux=True))
    gradient = both(theta)[0]
    steps = 1e-5 * np.eye(14)
    numeric = [(both(theta + s)[1] - both(theta - s)[1]) / 2e-5 for s in steps]
    numeric = np.stack(numeric, axis=1)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(gradient[-1], 0.0, atol=1e-12)


class Symbols(Chain):
    def emission(self, x, u):
        return dist.Categorical(self.means[x])


def test_impossible_data_give_minus_infinity_and_no_nan():
    left_to_right = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    ys = jnp.array([0, 1, 2, 0, 2])  # state 2 is never left

    def total(table, symbols):
        return evidence(Symbols(jnp.array([1.0, 0.0, 0.0]), table, symbols, jnp.eye(2)), ys)

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, gradient = both(left_to_right, jnp.eye(3))
    assert value == -jnp.inf
    assert all(np.isfinite(g).all() for g in gradient)
    model = Symbols(jnp.array([1.0, 0.0, 0.0]), left_to_right, jnp.eye(3), jnp.eye(2))
    state, steps, paths, marginals, best, _ = run(model, ys, None, None)
    assert state.log_evidence == -jnp.inf
    np.testing.assert_array_equal(np.isneginf(steps.log_likelihood), [0, 0, 0, 1, 0])
    for array in (steps.filtered, steps.predicted, marginals):
        np.testing.assert_allclose(np.exp(array).sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(best, [0, 1, 2, 2, 2])
    drawn = jax.jit(lambda p: p.sample(jax.random.key(0), 2))(paths)
    np.testing.assert_array_equal(drawn, [[0, 1, 2, 2, 2]] * 2)


def test_a_nan_parameter_is_not_taken_for_impossible_data():
    assert np.isnan(evidence(chain(table=np.full((3, 3), np.nan)), YS))
    assert np.isnan(evidence(chain(noise=np.full((2, 2), np.nan)), YS))


def test_states_that_seem_lost_come_back():
    # 2 x 3,000 nats against a state, then as many for it: no probability would survive
    model = Chain(
        jnp.array([0.5, 0.5]), jnp.eye(2), jnp.array([[0.0, 0.0], [100.0, 0.0]]), jnp.eye(2)
    )
    ys = jnp.array([[10.0, 0.0], [10.0, 0.0], [90.0, 0.0], [95.0, 0.0]])
    state, _, _, marginals, best, _ = run(model, ys, None, None)
    table = stats.norm(np.array([0.0, 100.0])).logpdf(np.asarray(ys[:, :1]))
    table = table + stats.norm().logpdf(0.0)
    paths = enumerate_paths(np.full(2, 0.5), np.broadcast_to(np.eye(2), (4, 2, 2)), table)
    np.testing.assert_allclose(state.log_evidence, paths.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(np.exp(marginals), paths.marginals, atol=1e-12)
    np.testing.assert_array_equal(best, [1, 1, 1, 1])


def test_a_stream_of_steps_is_the_filter():
    model, us, *_ = CASES["inputs"]
    kernel, ys, mask = hmm.finite_kernel(model, us), jnp.asarray(YS), PATTERNS["coordinates"]
    inputs = [jax.tree.map(lambda a, t=t: a[t], us) for t in range(LENGTH)]

    @jax.jit
    def begin(u, y, m):
        return hmm.update(kernel, hmm.start(kernel, u), 0, u, y, m)[0]

    one = jax.jit(lambda state, *at: hmm.step(kernel, state, *at)[0])
    state = begin(inputs[0], ys[0], mask[0])
    for t in range(1, LENGTH):
        state = one(state, t, inputs[t], ys[t], mask[t])
    expected = runs("inputs")["coordinates"][0]
    np.testing.assert_allclose(state.belief, expected.belief, rtol=1e-13)
    np.testing.assert_allclose(state.log_evidence, expected.log_evidence, rtol=1e-13)


def test_float32_keeps_its_digits_over_a_long_series():
    path = np.random.default_rng(5).normal(size=(20_000, 2))
    values = {}
    for dtype in (jnp.float32, jnp.float64):
        model = jax.tree.map(lambda a, d=dtype: a.astype(d), chain())
        values[dtype] = jax.jit(evidence)(model, jnp.asarray(path, dtype))
        assert values[dtype].dtype == dtype
    # 1e-7 per step, added up with a compensated sum
    np.testing.assert_allclose(values[jnp.float32], values[jnp.float64], rtol=3e-7)


def bytes_per_step(fn, num_states):
    """Growth of the temporary memory of a compiled function with the length of the series."""
    table = jnp.full((num_states, num_states), 1 / num_states)
    model = Counts(table[0], table, jnp.zeros((num_states, 1)), jnp.eye(2))

    def size(length):
        ys = jax.ShapeDtypeStruct((length,), jnp.int32)
        return jax.jit(fn).lower(model, ys).compile().memory_analysis().temp_size_in_bytes

    return (size(2000) - size(1000)) / 1000


def test_memory():
    num_states = 32
    assert bytes_per_step(evidence, num_states) < 1
    square = 8 * num_states**2
    assert bytes_per_step(jax.grad(evidence, allow_int=True), num_states) < square / 2
    assert bytes_per_step(lambda m, y: run(m, y, None, None), num_states) < square / 2


def test_other_laws_are_refused_by_name():
    class Real(Chain):
        def transition(self, x, u):
            return dist.Normal(x, 1.0)

    with pytest.raises(ModelError, match=r"transition\(x, u\).*Categorical"):
        hmm.finite_kernel(chain(Real), None)

    class Batched(Chain):
        def initial(self, u):
            return dist.Categorical(jnp.ones((2, 3)) / 3)

    with pytest.raises(ModelError, match=r"initial\(u\).*one Categorical"):
        hmm.start(hmm.FiniteKernel(chain(Batched), None), None)
