"""The replay buffer: corrections by enumeration, draws by weight, and what it throws away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmkit import errors
from ssmkit.learned.replay_buffer import ReplayBuffer, corrected
from ssmkit.objectives.fab import annealed_loss, replayed_loss

X = np.linspace(-2, 2, 9)


def normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)


@pytest.mark.parametrize("alpha", [2.0, 1.5, 1.0])
def test_corrected_weights_are_those_for_the_new_flow(alpha):
    """Without annealing the log weight is known in closed form."""
    log_p, old, new, drawn = (normal(X, m, s) for m, s in ((0, 1), (0.5, 1.2), (-0.2, 0.9), (0, 2)))
    before = alpha * log_p + (1 - alpha) * old - drawn
    after = alpha * log_p + (1 - alpha) * new - drawn
    np.testing.assert_allclose(corrected(before, old, new, alpha), after, rtol=1e-5)


def test_the_loss_of_rows_drawn_by_weight_is_that_of_the_new_weights():
    """All rows enumerated: sum over categorical(w) of c h times the mean weight."""
    alpha = 2.0
    log_p, old, new = (normal(X, m, s) for m, s in ((0, 1), (0.5, 1.2), (-0.2, 0.9)))
    log_w = alpha * log_p + (1 - alpha) * old
    shares = jax.nn.softmax(log_w)
    losses = jnp.stack([replayed_loss(new[i : i + 1], old[i : i + 1], alpha, None)
                        for i in range(len(X))])  # fmt: skip
    left = jnp.sum(shares * losses) * jnp.mean(jnp.exp(log_w))
    right = -jnp.mean(jnp.exp(corrected(log_w, old, new, alpha)) * new)
    np.testing.assert_allclose(left, right, rtol=1e-5)


def test_the_slope_is_that_of_the_divergence():
    """Of a normal flow, by quadrature of the integral of p² over q, and by finite differences."""
    grid = jnp.linspace(-12, 12, 20001)
    width = grid[1] - grid[0]
    log_p = normal(grid, 0.0, 1.0)

    def log_q(theta):
        return normal(grid, theta[0], jnp.exp(theta[1]))

    def divergence(theta):
        return jnp.sum(jnp.exp(2 * log_p - log_q(theta))) * width

    theta = jnp.array([0.4, 0.2])
    exact = jax.grad(divergence)(theta)
    log_w = 2 * log_p - jax.lax.stop_gradient(log_q(theta))
    slope = jax.grad(lambda t: annealed_loss(log_q(t), log_w))(theta)
    np.testing.assert_allclose(exact / divergence(theta), slope, rtol=1e-3)


def filled(buffer, log_weights, batch_size=4):
    rows = buffer.empty(batch_size, jnp.zeros(1))
    for b in range(0, len(log_weights), batch_size):
        part = jnp.asarray(log_weights[b : b + batch_size])
        rows = buffer.add(rows, part[:, None], part, jnp.zeros(len(part)))
    return rows


def test_draws_with_replacement_come_by_weight():
    log_w = np.log(np.arange(1.0, 9.0))
    buffer = ReplayBuffer(capacity=2, begin=1, replace=True)
    rows = filled(buffer, log_w)
    count = 4000
    index = np.asarray(buffer.draw(jax.random.key(0), rows, count))
    found = np.bincount(index, minlength=8) / count
    # systematic points: each row at most one from its share
    assert np.max(np.abs(found - np.arange(1, 9) / 36)) < 1.5 / count
    assert not np.all(np.diff(index) >= 0)  # shuffled


def test_draws_without_replacement_come_once_and_heavy_ones_more_often():
    log_w = np.log(np.arange(1.0, 9.0))
    buffer = ReplayBuffer(capacity=2, begin=1, replace=False)
    rows = filled(buffer, log_w)
    draw = jax.vmap(lambda k: buffer.draw(k, rows, 2))
    index = np.asarray(draw(jax.random.split(jax.random.key(1), 3000)))
    assert np.all(index[:, 0] != index[:, 1])
    # the first of two perturbed weights is a draw by weight; of either, by enumeration
    p = np.arange(1, 9) / 36
    either = p + np.array([sum(p[j] * p[i] / (1 - p[j]) for j in range(8) if j != i)
                           for i in range(8)])  # fmt: skip
    found = np.bincount(index.ravel(), minlength=8) / 3000
    assert np.max(np.abs(found - either) / np.sqrt(either * (1 - either) / 3000)) < 4


def test_old_rows_go_first_and_bad_ones_do_not_come_in():
    buffer = ReplayBuffer(capacity=2, begin=1)
    rows = filled(buffer, np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, np.nan, np.inf, 11]))
    np.testing.assert_array_equal(rows.log_weights, [8, 1, 2, 11, 4, 5, 6, 7])
    assert int(rows.size) == 8 and int(rows.cursor) == 4
    empty = buffer.empty(4, jnp.zeros(1))
    assert int(empty.size) == 0


def test_corrections_are_clipped_and_what_is_no_number_counts_nothing():
    now, then = jnp.array([-5.0, 0.0, -jnp.inf]), jnp.array([0.0, 0.0, 0.0])
    np.testing.assert_allclose(replayed_loss(now, then, 2.0, 10.0), 50 / 3, rtol=1e-6)
    assert np.isneginf(corrected(jnp.zeros(3), then, now, 2.0)[2])
    slope = jax.grad(lambda q: replayed_loss(q, then, 2.0, None))(now)
    assert np.all(np.isfinite(slope)) and slope[2] == 0
    assert annealed_loss(now, jnp.array([0.0, 0.0, -jnp.inf])) == 2.5


@pytest.mark.parametrize(
    "changes", [{"capacity": 3, "begin": 4}, {"num_updates": 0}, {"clip": 0.5}]
)
def test_impossible_options(changes):
    with pytest.raises(errors.OptionError, match=r"learned\.ReplayBuffer"):
        ReplayBuffer(**changes)
