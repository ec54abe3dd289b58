"""A bank of fixed size: series leave their slots, and others take them."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import ssmkit as sk
from ssmkit import errors

NOISE = np.random.default_rng(8)
LEVEL = sk.models.LocalLevel(0.5, 1.5)
VOLATILITY = sk.models.StochasticVolatility(-1.0, 0.97, 0.2)
BEFORE, AFTER = NOISE.normal(size=(5, 3)), NOISE.normal(size=(4, 3))


def fed(engine, model, new, **options):
    bank = sk.stream(0, engine, model, num_series=3, **options)
    for row in BEFORE:
        bank.update(row)
    beliefs = [bank.update(AFTER[0], new=new)]
    return bank, [*beliefs, *(bank.update(row) for row in AFTER[1:])]


@pytest.mark.parametrize("new", [[1], np.array([False, True, False])], ids=str)
def test_a_slot_starts_anew_and_the_others_go_on(new):
    bank, beliefs = fed(sk.Kalman(), LEVEL, new, run_length=100)
    for slot in range(3):
        alone = sk.stream(0, sk.Kalman(), LEVEL, run_length=100)
        rows = AFTER if slot == 1 else np.concatenate([BEFORE, AFTER])
        told = [alone.update(y) for y in rows[:, slot]][-len(AFTER) :]
        for mine, belief in zip(beliefs, told, strict=True):
            np.testing.assert_allclose(mine.mean()[slot], belief.mean(), rtol=1e-12)
            np.testing.assert_allclose(mine.cov()[slot], belief.cov(), rtol=1e-12)
        np.testing.assert_allclose(bank.log_evidence[slot], alone.log_evidence, rtol=1e-12)
        np.testing.assert_allclose(bank.alarm.statistic[slot], alone.alarm.statistic, rtol=1e-12)
    assert bank.time == 9


def test_what_was_skipped_belongs_to_the_series():
    bank = sk.stream(0, sk.Kalman(), LEVEL, num_series=3)
    bank.update(BEFORE[0])
    bank.update(np.array([np.inf, 0.0, np.inf]))
    assert bank.diagnostics["skipped"].tolist() == [1, 0, 1]
    bank.update(BEFORE[1], new=[2])
    assert bank.diagnostics["skipped"].tolist() == [1, 0, 0]


def test_a_slot_never_draws_the_same_numbers_twice():
    """The same data, in the same slot, at another time: other particles; of the same law."""
    bank = sk.stream(0, sk.SMC(500), VOLATILITY, num_series=2)
    first = bank.update(np.array([0.3, 0.3]))
    again = bank.update(np.array([0.3, 0.3]), new=[1])
    particles = [np.array(belief.values[1]) for belief in (first, again)]
    assert not np.any(np.isin(*particles))
    gap = abs(float(first.mean()[1] - again.mean()[1]))
    assert gap < 4.5 * float(first.std()[1]) * np.sqrt(2 / 250)
    third = bank.update(np.array([0.3, 0.3]), new=[1])
    assert not np.any(np.isin(particles[1], np.array(third.values[1])))


def test_a_bank_goes_on_from_a_file(tmp_path):
    bank, _ = fed(sk.SMC(20), VOLATILITY, [0, 2])
    again = sk.load_stream(bank.save(tmp_path / "slots.stream"))
    for new in ([1], None):
        told = [flow.update(AFTER[0], new=new) for flow in (bank, again)]
        assert all(
            np.array_equal(a, b)
            for a, b in zip(*(jax.tree.leaves(belief) for belief in told), strict=True)
        )


def test_a_new_series_learns_from_its_own_beginning():
    """Burn-in and the share of the prior are of the series, not of the bank's clock."""

    def program():
        size = numpyro.param("size", 1.0, constraint=dist.constraints.positive)
        return sk.models.LocalLevel(size, 1.5).with_initial([0.0], [1.0])

    ascent = sk.StochasticAscent(rate=0.05, burn_in=4)
    engine = sk.OnlineVariational(num_steps=0, value=None, ascent=ascent, num_paths=2)
    bank = sk.stream(0, engine, program, num_series=2)
    ys = NOISE.normal(size=(12, 2))
    moved = []
    for t, row in enumerate(ys):
        bank.update(row, new=[1] if t == 6 else [])
        moved.append(np.array(bank.params["size"]) != 1.0)
    expected = [[t >= 4, t >= 4 if t < 6 else t >= 10] for t in range(12)]
    np.testing.assert_array_equal(moved, expected)


def test_everybody_is_new_at_the_first_observation():
    banks = [sk.stream(0, sk.Kalman(), LEVEL, num_series=3) for _ in range(2)]
    told = [banks[0].update(BEFORE[0], new=[1]), banks[1].update(BEFORE[0])]
    np.testing.assert_array_equal(told[0].mean(), told[1].mean())


@pytest.mark.parametrize("new", [[3], [-1], [0.5], np.array([True]), "first"], ids=str)
def test_a_slot_that_is_not_there_is_named(new):
    bank = sk.stream(0, sk.Kalman(), LEVEL, num_series=3)
    bank.update(BEFORE[0])
    with pytest.raises(errors.OptionError, match="new says which series"):
        bank.update(BEFORE[1], new=new)
    assert bank.time == 1


def test_what_has_no_slots_says_so():
    with pytest.raises(errors.OptionError, match="only a bank"):
        sk.stream(0, sk.Kalman(), LEVEL).update(0.0, new=[0])
    moving = sk.models.LinearGaussian(
        np.zeros(1), np.eye(1), np.ones((9, 1, 1)), np.eye(1), np.eye(1), np.eye(1)
    )
    bank = sk.stream(0, sk.Kalman(), moving, num_series=2)
    bank.update(np.zeros((2, 1)))
    with pytest.raises(errors.EngineError, match="belong to times"):
        bank.update(np.zeros((2, 1)), new=[0])
