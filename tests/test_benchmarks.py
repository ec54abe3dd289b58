"""The benchmark harness at tiny size: values agree with the peers that are there; no timing."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

# What is proved here does not depend on versions.
pytestmark = pytest.mark.study

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [path.stem for path in FOLDER.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_peers_agree():
    import kalman

    gaps = kalman.disagreement(kalman.make_problem(30))
    assert set(gaps) == {name for name, present in kalman.installed().items() if present}
    assert all(gap < 1e-6 for gap in gaps.values()), gaps


def test_our_gradient_is_of_all_parameters():
    import jax
    import kalman

    answers = kalman.ours(kalman.make_problem(20))
    leaves = jax.tree.leaves(answers.gradient())
    assert sum(leaf.size for leaf in leaves) == 4 + 16 + 16 + 16 + 8 + 4 + 4 + 2
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


def test_a_missing_peer_is_a_visible_row():
    import timing

    rows = timing.compare(
        "work",
        [timing.Contender("ssmkit", lambda: 1.0), timing.Contender("absent", None)],
        repetitions=2,
    )
    assert [row.is_missing for row in rows] == [False, True]
    text = timing.markdown(timing.HEADER, [row.cells() for row in rows])
    assert "missing" in text and "not installed" in text


def test_repetitions_are_interleaved():
    import timing

    calls = []
    contenders = [timing.Contender(n, lambda n=n: calls.append(n)) for n in ("a", "b")]
    timing.compare("work", contenders, repetitions=3)
    assert calls == ["a", "b"] * 4


def test_what_is_missing_or_wrong_fails_the_run(tmp_path, monkeypatch):
    import datetime

    import run

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    now = datetime.datetime.now()
    assert run.finish(now, ["text"], ["dynamax"], []) == 1
    assert run.finish(now, ["text"], [], ["dynamax"]) == 1
    assert "dynamax" in next(tmp_path.iterdir()).read_text(encoding="utf-8")
    assert run.finish(now, ["text"], [], []) == 0
    assert "dynamax" not in next(tmp_path.iterdir()).read_text(encoding="utf-8")


@pytest.fixture
def no_peers(monkeypatch, benchmarks_on_path):
    import particle_peers

    absent = dict.fromkeys(particle_peers.PEERS, False)
    monkeypatch.setattr(particle_peers, "installed", lambda: absent)


def test_particle_methods_agree_with_the_truth(no_peers):
    import particle_filters

    found = particle_filters.agreement(T=20, count=200, num_paths=20, num_seeds=6)
    assert all(a.agrees for a in found if not a.is_missing), [a.cells() for a in found]
    assert {a.name for a in found if a.is_missing} == {"cuthbert", "particles"}
    assert "missing" in next(a for a in found if a.is_missing).cells()


def test_a_wrong_filter_is_seen(no_peers):
    import particle_filters
    import particle_problems

    truth = particle_problems.volatility_truth(particle_problems.volatility_data(20)).log_evidence
    filters = particle_filters.volatility_filters(20, 200)
    wrong = {"late": lambda seed: filters["by hand"](seed) + 1.0, "nan": lambda seed: math.nan}
    found = particle_filters.evidence_agreement("volatility", wrong, truth, 6)
    assert not any(a.agrees or a.is_missing for a in found)


def test_single_updates_are_the_filter(no_peers):
    import particle_filters

    updates = particle_filters.steps(50)
    whole = particle_filters.volatility_filters(4, 50)  # of the same data
    bare, hand = particle_filters.BARE, particle_filters.HAND
    for _ in range(3):
        cloud, carry, belief = (updates[name]() for name in (bare, hand, "ssmkit"))
    assert float(cloud.log_evidence) == pytest.approx(float(whole["ssmkit"](0)), rel=1e-9)
    assert float(carry[2]) == pytest.approx(float(whole[hand](0)), rel=1e-9)
    assert belief.log_weights.shape == (50,)
    assert updates["particles"] is None
    assert float(updates["empty call"]()) == 0.0


def test_particle_targets_of_missing_peers_are_missed(no_peers):
    import particle_filters as filters
    import timing

    def rows_of(work, names):
        there = [timing.Contender(n, lambda: 1.0) for n in names]
        absent = [timing.Contender(n, None) for n in ("cuthbert", "particles")]
        return timing.compare(work, there + absent, repetitions=1)

    own = ("ssmkit", filters.FLOAT32, filters.HAND, filters.BARE, filters.EMPTY)
    works = (filters.SMALL, filters.LARGE, filters.LINEAR, filters.EXACT)
    works += tuple(filters.moves_of(m) for m in filters.MOVES)
    rows = [row for work in works for row in rows_of(work, own)]
    found = filters.targets(rows, rows_of(filters.UPDATE, own))
    assert all(t.met is False for t in found if "cuthbert" in t.figure or "particles" in t.figure)
    assert any("cuthbert" in t.figure for t in found)


def test_exponents_of_growth():
    import particle_scaling

    assert particle_scaling.exponent((1, 10, 100), (2.0, 20.0, 200.0)) == pytest.approx(1.0)
    growth = particle_scaling.grow("N", (5, 10), lambda n: lambda seed: n, "nothing")
    assert growth.sizes == (5, 10) and len(growth.cells()) == len(particle_scaling.HEADER)


def test_the_study_of_standard_errors_answers():
    import standard_error

    row = standard_error.study("systematic", 0.5, 5, 50, 100)
    assert len(row) == len(standard_error.HEADER)
    assert 0.5 < float(row[4]) < 2 and row[-1] == "100 %"


def test_latencies_have_a_row_for_each_contender():
    import online_latency

    section = online_latency.latency(quick=True)
    steps = len(online_latency.QUICK.steps)
    assert len(section.lines) == 1 + steps + 2 + 2
    assert all(len(line) == len(section.header) for line in section.lines)
    assert section.lines[0][0] == online_latency.EMPTY
    assert online_latency.EMPTY in section.text()


@pytest.mark.parametrize("report", ["sixo", "online"])
def test_rows_of_reports_name_what_is_there(report):
    for row in importlib.import_module(report).ROWS.values():
        module, function = row.split(":")
        assert callable(getattr(importlib.import_module(module), function)), row


def test_the_video_is_scored_by_what_is_true():
    import online_video
    import video_film

    random = np.random.default_rng(0)
    film = video_film.shoot(random, 400)
    found = online_video.whereabouts(video_film.render(film.places))
    assert np.abs(found - film.places).max() <= 0.125 + 1e-9  # half a step of the grid
    pixels, scale = video_film.SIDE**2, video_film.NOISE
    entropy = pixels * (0.5 + np.log(scale) + 0.5 * np.log(2 * np.pi))
    spread = np.sqrt(pixels / 2 / len(film.frames))
    assert abs(film.log_densities.mean() + entropy) < 4 * spread
    starts = np.array([100, 200])
    truth = np.array([video_film.render(film.places[t + 1 : t + 21]) for t in starts])
    run = online_video.Followed(film.log_densities, found, starts, truth, 0.0)
    own, mean, last, best = online_video.rollout_errors(random, film, run)
    assert own == 0 < best < min(mean, last)
    assert online_video.parts(film, run) == [0.0] * 5
    seen, hidden = online_video.place_errors(film, run)
    assert max(seen, hidden) < 0.125 * np.sqrt(2)
