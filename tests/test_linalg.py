"""Small-matrix kernels against numpy: singular input, float32, gradients, sizes of both loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmkit.linalg import (
    UNROLLED,
    cholesky_psd,
    psd_factor,
    solve_lower,
    solve_lower_transposed,
    solve_psd,
    triangularise,
)

SIZES = [3, UNROLLED + 2]  # unrolled, and as a loop
DTYPES = [np.float64, np.float32]


def covariance(size, rank, dtype=np.float64, seed=0):
    factor = np.random.default_rng(seed).normal(size=(size, rank)).astype(dtype)
    return factor @ factor.T


def tolerance(dtype):
    return 200 * np.finfo(dtype).eps


@functools.cache
def jitted(function):
    return jax.jit(function)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_cholesky_of_full_rank_is_numpys(size, dtype):
    a = covariance(size, size + 5, dtype)
    factor = jitted(cholesky_psd)(a)
    assert factor.dtype == dtype
    expected = np.linalg.cholesky(a.astype(np.float64))
    np.testing.assert_allclose(factor, expected, atol=tolerance(dtype) * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "rank"), [(4, 0), (4, 1), (4, 3), (UNROLLED + 2, 5)])
def test_cholesky_of_singular_reproduces_the_matrix(size, rank, dtype):
    a = covariance(size, rank, dtype)
    factor = np.asarray(jitted(cholesky_psd)(a))
    assert np.all(np.isfinite(factor))
    assert np.all(np.triu(factor, 1) == 0)
    assert np.count_nonzero(np.diagonal(factor)) == rank
    np.testing.assert_allclose(factor @ factor.T, a, atol=tolerance(dtype) * (1 + np.abs(a).max()))


def test_cholesky_batches_and_scales_a_matrix_at_a_time():
    batch = np.stack([covariance(3, 3, seed=s) * 10.0 ** (8 * s - 8) for s in range(3)])
    factor = jitted(cholesky_psd)(jnp.asarray(batch))
    np.testing.assert_allclose(factor, np.linalg.cholesky(batch), rtol=1e-9)


def test_cholesky_scale_says_what_counts_as_zero():
    a = jnp.eye(2) * 1e-16
    assert np.count_nonzero(cholesky_psd(a)) == 2
    assert np.count_nonzero(cholesky_psd(a, scale=jnp.ones(2))) == 0


@pytest.mark.parametrize("size", [3, UNROLLED + 2])
def test_cholesky_gradient_is_the_finite_difference(size):
    a, direction = covariance(size, size + 3), covariance(size, 2, seed=1)
    weights = np.tril(np.random.default_rng(2).normal(size=(size, size)))

    @jax.jit
    def f(h):
        return jnp.sum(weights * cholesky_psd(a + h * direction))

    numeric = (f(1e-5) - f(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(f)(0.0), numeric, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(f)(0.0), numeric, rtol=1e-6)


def test_gradients_through_singular_matrices_are_finite_and_right():
    # a rank-one family v(h) v(h)': its factor has one column, whose derivative is known
    @jax.jit
    def f(h):
        v = jnp.array([1.0, 2.0 + h, -1.0])
        return cholesky_psd(jnp.outer(v, v))[1, 0]

    np.testing.assert_allclose(jax.grad(f)(0.0), 1.0, rtol=1e-9)
    grads = jax.grad(jax.jit(lambda a: jnp.sum(cholesky_psd(a))))(jnp.zeros((3, 3)))
    assert np.all(np.isfinite(grads))


def test_psd_factor_refuses_what_is_no_covariance():
    good = jnp.asarray(covariance(3, 2))
    factor = jitted(psd_factor)(good)
    np.testing.assert_allclose(factor @ factor.T, good, atol=1e-12)
    assert np.all(jitted(psd_factor)(jnp.zeros((2, 2))) == 0)
    for bad in (
        [[1.0, 2.0], [2.0, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
        [[0.0, 1.0], [1.0, 0.0]],
        [[1.0, 0.5], [0.0, 1.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
    ):
        assert np.all(np.isnan(jitted(psd_factor)(jnp.array(bad)))), bad
    both = jitted(psd_factor)(jnp.array([[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 4.0]]]))
    assert np.isnan(both[0]).all()
    np.testing.assert_allclose(both[1], np.diag([1.0, 2.0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_solves_are_numpys(size, dtype):
    a = covariance(size, size + 5, dtype) + np.eye(size, dtype=dtype)
    b = np.random.default_rng(3).normal(size=(size, 2)).astype(dtype)
    lower = np.linalg.cholesky(a)
    for solve, matrix in ((solve_lower, lower), (solve_lower_transposed, lower.T), (solve_psd, a)):
        expected = np.linalg.solve(matrix, b)
        np.testing.assert_allclose(jitted(solve)(lower, b), expected, atol=10 * tolerance(dtype))


def test_singular_solve_is_a_generalised_inverse():
    a = covariance(4, 2)
    factor = jitted(cholesky_psd)(jnp.asarray(a))
    b = a @ np.random.default_rng(4).normal(size=(4, 3))  # in the range of a
    np.testing.assert_allclose(a @ jitted(solve_psd)(factor, jnp.asarray(b)), b, atol=1e-10)


def test_solve_gradient_is_finite_with_a_zero_pivot():
    def f(b):
        return jnp.sum(jitted(solve_lower)(jnp.array([[2.0, 0.0], [1.0, 0.0]]), b))

    np.testing.assert_allclose(jax.grad(f)(jnp.ones((2, 1))), [[0.5], [0.0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (3, 2), (UNROLLED + 2, UNROLLED + 4)])
def test_triangularise_keeps_the_product(rows, columns, dtype):
    a = np.random.default_rng(5).normal(size=(rows, columns)).astype(dtype)
    lower = np.asarray(jitted(triangularise)(a))
    assert lower.dtype == dtype
    assert np.allclose(np.triu(lower, 1), 0, atol=tolerance(dtype))
    np.testing.assert_allclose(lower @ lower.T, a @ a.T, atol=tolerance(dtype) * rows)


def test_triangularise_keeps_digits_that_a_product_loses():
    a = np.array([[1.0, 0.0], [1.0, 1e-5]], np.float32)
    assert np.linalg.det((a @ a.T).astype(np.float64)) == 0  # 1 + 1e-10 is 1
    np.testing.assert_allclose(jitted(triangularise)(jnp.asarray(a)), a, rtol=1e-6)


def test_triangularise_gradient_for_deficient_rank():
    @jax.jit
    def f(h):
        row = jnp.array([1.0, 2.0, 2.0 + h])
        return triangularise(jnp.stack([row, 2 * row]))[1, 0]

    np.testing.assert_allclose(jax.grad(f)(0.0), 2 * 2 / 3, rtol=1e-9)
