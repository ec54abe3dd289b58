"""The command line: arguments, the demo's files, and what it prints."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import ssmkit as sk
from ssmkit.cli import main
from ssmkit.demo import correlation_notes, number, outcome_table, run_case
from ssmkit.demo_cases import CASES, QUICK_CASES
from ssmkit.report import Stopwatch, heartbeat, table


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"ssmkit {sk.__version__}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: command"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
        (["demo", "--out"], "expected one argument"),
        (["demo", "--out", __file__], "is a file"),
    ],
)
def test_wrong_arguments(capsys, arguments, text):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--out", str(tmp_path / "file" / "below")]) == 1
    assert "error" in capsys.readouterr().err


def test_ctrl_c(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmkit.demo.run_case", interrupted)
    assert main(["demo", "--out", str(tmp_path)]) == 130


def test_float64_is_on_in_a_fresh_process():
    code = (
        "import ssmkit.demo as demo, jax\n"
        "assert not jax.config.jax_enable_x64\n"
        "demo.run_demo = lambda *_, **__: print(jax.config.jax_enable_x64)\n"
        "from ssmkit.cli import main\n"
        "main(['demo'])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_quick_demo(capsys, tmp_path):
    out = tmp_path / "new" / "folder"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    expected = {"summary.txt"}
    for case in QUICK_CASES:
        expected |= {f"{case.name}.nc", f"{case.name}-forecast.png", f"{case.name}-residuals.png"}
        expected |= {f"{case.name}-{panel}.png" for panel, _ in case.panels}
    assert {path.name for path in out.iterdir()} == expected
    assert all(path.stat().st_size > 1000 for path in out.iterdir())
    for text in ("-633.46", "exact, of", "data given parameters", "1469.2", "15099", str(out)):
        assert text in printed
    assert "level_variance" in (out / "summary.txt").read_text(encoding="utf-8")
    import xarray

    with xarray.open_dataset(out / "nile-fit.nc", group="posterior", engine="h5netcdf") as saved:
        assert saved["states"].sizes["time"] == 100


def test_cases_are_complete():
    assert {case.series for case in CASES} == {"nile", "co2", "sp500"}
    assert any(np.isnan(case.load().to_numpy()).any() for case in CASES)
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    engines = {type(case.engine).__name__ for case in CASES}
    assert engines >= {"GradientFit", "NUTS", "ParticleMetropolisHastings"}


@pytest.mark.study
def test_a_case_by_particles_has_no_residuals(tmp_path):
    (case,) = (case for case in CASES if case.name == "sp500-pmmh")
    size = {"num_warmup": 8, "num_samples": 8, "num_particles": 20, "num_state_draws": 4}
    small = dataclasses.replace(case, engine=dataclasses.replace(case.engine, **size), last=30)
    assert abs(small.load().mean()) < 1e-12
    outcome = run_case(small, tmp_path, say=lambda _: None)
    names = {"sp500-pmmh.nc", "sp500-pmmh-volatility.png", "sp500-pmmh-forecast.png"}
    assert {path.name for path in outcome.files} == names
    assert not any("residuals" in note for note in outcome.notes)
    assert "not estimated" in outcome_table([outcome])


def test_notes_name_the_worst_lag():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    assert correlation_notes(noise) == []
    seasonal = noise.copy()
    seasonal[12:] += 0.8 * noise[:-12]
    (note,) = correlation_notes(seasonal)
    assert "lag 12" in note


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (15098.6, 5, "15099"),
        (1280.4, 3, "1280"),
        (4.5678e-6, 3, "4.57e-06"),
        (0.0137, 3, "0.0137"),
        (0.0, 3, "0"),
        (float("nan"), 3, "nan"),
        (-2.5, 2, "-2.5"),
    ],
)
def test_numbers_are_readable(value, digits, text):
    assert number(value, digits) == text


def test_stopwatch_and_heartbeat():
    import time

    import jax

    said = []
    with Stopwatch() as watch, heartbeat(said.append, every=0.02):
        jax.jit(lambda x: x + 1.2345).lower(1.0).compile()
        time.sleep(0.1)
    assert watch.seconds >= watch.compiling >= 0
    assert said and "s" in said[0]
    count = len(said)
    time.sleep(0.06)
    assert len(said) == count


def test_table_aligns_cells_of_several_lines():
    text = table(("name", "x"), [("one\ntwo", "1"), ("three", "2")])
    assert text.splitlines()[2:] == ["one    1", "two", "", "three  2"]
