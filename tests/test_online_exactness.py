"""Online variational inference whose family is wrong on purpose: the bound in closed form."""

import dataclasses
from typing import Any

import jax
import numpy as np
from linear_reference import FULL as MODEL

import ssmkit as sk
from ssmkit.learned.backward import Filter

LENGTH = 6
YS = np.array(sk.simulate(3, MODEL, LENGTH).observations)


@dataclasses.dataclass(frozen=True)
class Askew:
    """A start whose filters are shifted and too wide, and whose kernels lean the wrong way."""

    start: Any = sk.learned.LinearisedStart()
    serves_full = True

    def _turned(self, filter):
        return Filter(filter.mean + 0.4, 1.3 * filter.factor)

    def first(self, model, s, network, *, full):
        (filter, _), moves = self.start.first(model, s, network, full=full)
        return (self._turned(filter), None), moves

    def later(self, model, s, last, moves):
        (filter, kernel), moves = self.start.later(model, s, last, moves)
        bent = dataclasses.replace(
            kernel,
            matrix=0.6 * kernel.matrix,
            offset=kernel.offset - 0.3,
            factor=1.2 * kernel.factor,
        )
        return (self._turned(filter), bent), moves


WRONG = sk.OnlineVariational(
    start=Askew(), num_steps=0, num_paths=4000, value=sk.learned.Polynomial(num_points=512)
)


def expected_log(gap, spread, cov):
    """Mean log density of a normal law whose argument has a mean gap and a covariance."""
    size = gap @ np.linalg.solve(cov, gap) + np.trace(np.linalg.solve(cov, spread))
    return -0.5 * (size + np.linalg.slogdet(2 * np.pi * cov)[1])


def entropy(cov):
    return 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]


def exact_bound(posterior, length):
    """The bound of the first steps, from the moments of neighbours, last to first."""
    paths = posterior.states.paths
    filters, kernels = (jax.tree.map(lambda a: np.array(a)[0], p) for p in paths_of(paths))
    start, start_cov = (np.array(a) for a in (MODEL.initial_mean, MODEL.initial_cov))
    move, noise = np.array(MODEL.transition_matrix), np.array(MODEL.transition_cov)
    emission, error = np.array(MODEL.emission_matrix), np.array(MODEL.emission_cov)
    factor = filters.factor[length - 1]
    mean, cov = filters.mean[length - 1], factor @ factor.T
    bound = entropy(cov)
    for t in range(length - 1, -1, -1):
        gap = YS[t] - emission @ mean
        bound += expected_log(gap, emission @ cov @ emission.T, error)
        if t == 0:
            return bound + expected_log(mean - start, cov, start_cov)
        matrix, rest = kernels.matrix[t - 1], kernels.factor[t - 1]
        before = kernels.offset[t - 1] + matrix @ (mean - kernels.centre[t - 1])
        cross = matrix @ cov  # of the state before and the state
        spread = cross @ matrix.T + rest @ rest.T
        joint = cov - move @ cross - cross.T @ move.T + move @ spread @ move.T
        bound += expected_log(mean - move @ before, joint, noise) + entropy(rest @ rest.T)
        mean, cov = before, spread
    raise AssertionError("unreachable")


def paths_of(paths):
    return paths.filters, paths.kernels


def test_the_bound_of_a_wrong_family_is_that_of_its_closed_form():
    found = sk.infer(0, WRONG, MODEL, YS)
    bound = exact_bound(found, LENGTH)
    evidence = float(sk.infer(0, sk.Kalman(), MODEL, YS).log_evidence)
    assert bound < evidence - 1.0  # it is wrong enough to tell
    assert abs(float(found.log_evidence) - bound) < 4.5 * float(found.log_evidence_se)


def test_the_running_bound_is_carried_without_bias():
    """The recursion of a quadratic value, which the regression holds, over independent keys."""
    runs = [sk.infer(seed, WRONG, MODEL, YS) for seed in range(24)]
    bound = exact_bound(runs[0], LENGTH)
    running = np.array([run.diagnostics["online_log_evidence"] for run in runs])
    error = running.std(ddof=1) / np.sqrt(len(running))
    assert abs(running.mean() - bound) < 4.5 * error
    # of one step alone the past's slope and value are missing, and the sum is another one
    short = [sk.infer(seed, dataclasses.replace(WRONG, value=None), MODEL, YS) for seed in range(4)]
    short = np.array([run.diagnostics["online_log_evidence"] for run in short])
    assert abs(short.mean() - bound) > 10 * error


def test_independent_coordinates_are_exact_with_independent_filters():
    size = 3
    first, second = np.random.default_rng(size).uniform(0.5, 1.0, size=(2, size))
    eye = np.eye(size)
    model = sk.models.LinearGaussian(
        np.zeros(size), eye, np.diag(first), 0.01 * eye, np.diag(second), 0.04 * eye
    )
    ys = np.array(sk.simulate(size, model, 5).observations)
    engine = sk.OnlineVariational(filter="diagonal", num_steps=3, num_paths=10)
    exact, found = sk.infer(0, sk.Kalman(), model, ys), sk.infer(1, engine, model, ys)
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-8)
    np.testing.assert_allclose(found.states.mean(), exact.states.mean(), atol=1e-8)


def test_the_source_climbs_to_the_evidence_from_far_away():
    """From standard normal starts, where nothing is linearised, by gradient steps alone."""
    eye = np.eye(2)
    model = sk.models.LinearGaussian(
        np.zeros(2), eye, np.diag([0.9, 0.6]), 0.3 * eye, np.diag([0.8, 1.0]), 0.5 * eye
    )
    ys = np.array(sk.simulate(4, model, 5).observations)
    evidence = float(sk.infer(0, sk.Kalman(), model, ys).log_evidence)
    engine = sk.OnlineVariational.as_published(kernel="linear", num_samples=32, final_rate=0.01)
    gaps = []
    for steps in (20, 1000):
        found = sk.infer(1, dataclasses.replace(engine, num_steps=steps), model, ys)
        gaps.append((evidence - float(found.log_evidence), float(found.log_evidence_se)))
    assert gaps[0][0] > 0.5
    assert -4.5 * gaps[1][1] < gaps[1][0] < 0.02 * LENGTH + 4.5 * gaps[1][1]  # 1e-2 nats a kernel


def test_series_of_a_bank_are_streams_of_their_own_and_do_not_mix():
    ys = np.random.default_rng(0).normal(size=(3, 4, 3))
    ys[1, 2] = np.inf  # impossible: its own series skips the step
    engine = dataclasses.replace(WRONG, start=sk.learned.LinearisedStart(), num_paths=10)
    bank = sk.stream(0, engine, MODEL, 3)
    alone = [sk.stream(0, engine, MODEL) for _ in range(3)]
    for t in range(4):
        belief = bank.update(ys[:, t])
        for series, flow in enumerate(alone):
            single = flow.update(ys[series, t])
            np.testing.assert_allclose(belief.mean()[series], single.mean(), atol=1e-8)
    assert bank.diagnostics["skipped"].tolist() == [0, 1, 0]
    assert np.all(np.isfinite(bank.log_evidence))


def test_a_step_stays_the_same_program_and_the_same_size():
    engine = dataclasses.replace(WRONG, start=sk.learned.LinearisedStart(), num_paths=10)
    flow = sk.stream(0, engine, MODEL)
    sizes, traced = [], []
    for y in np.tile(YS, (5, 1)):
        flow.update(y)
        leaves = jax.tree.leaves(flow._stepper.seen.state)
        sizes.append([(a.shape, a.dtype) for a in leaves])
        traced.append(flow._stepper._functions.step._cache_size())
    assert all(size == sizes[1] for size in sizes[1:])
    assert traced[-1] == traced[1]
