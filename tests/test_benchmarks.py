"""The benchmark harness at tiny size: values agree with the peers that are there; no timing."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("kalman", "timing", "memory", "nile", "startup", "run"):
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


def test_a_missing_peer_fails_the_run(tmp_path, monkeypatch):
    import datetime

    import kalman
    import run

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(kalman, "installed", lambda: {"dynamax": False})
    assert run.finish(datetime.datetime.now(), ["text"], {}) == 1
    monkeypatch.setattr(kalman, "installed", lambda: {"dynamax": True})
    assert run.finish(datetime.datetime.now(), ["text"], {"dynamax": 1e-9}) == 0
    assert run.finish(datetime.datetime.now(), ["text"], {"dynamax": 1e-3}) == 1
    assert "dynamax" not in next(tmp_path.iterdir()).read_text(encoding="utf-8")
