"""The command line at work: real files, real pipes, real signals."""

import contextlib
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CACHE
from pages import ROOT, code_blocks

import ssmkit as sk
from ssmkit.cli import main
from ssmkit.cli.clock import Clock, moment
from ssmkit.cli.engine_text import read_engine
from ssmkit.cli.lines import Columns, begin
from ssmkit.cli.output import Output
from ssmkit.cli.rows import Told, Writer
from ssmkit.cli.targets import load_target
from ssmkit.errors import (
    DataError,
    EngineError,
    ModelError,
    OptionError,
    SaveError,
    UnknownNameError,
)

MODELS = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist, ssmkit as sk
from jax import Array

local = sk.models.LocalLevel(1469.0, 15099.0)
walk = sk.models.LinearGaussian(
    initial_mean=[0.0, 0.0], initial_cov=[[1.0, 0.0], [0.0, 1.0]],
    transition_matrix=[[0.9, 0.1], [0.0, 0.8]], transition_cov=[[0.1, 0.0], [0.0, 0.2]],
    emission_matrix=[[1.0, 0.0], [0.5, 1.0]], emission_cov=[[0.3, 0.0], [0.0, 0.3]],
    state_names=("up", "down"), observation_names=("a", "b"),
)
counts = sk.models.PoissonCounts(1.0, 0.9, 0.2)
coin = sk.models.DiscreteHMM(
    initial_probs=[0.5, 0.5], transition_probs=[[0.9, 0.1], [0.2, 0.8]],
    emission_law=dist.Normal(jnp.array([0.0, 3.0]), 1.0),
)

class Pushed(sk.StateSpaceModel):
    scale: Array

    def initial(self, u):
        return dist.Normal(0.0, 1.0)

    def transition(self, x, u):
        return dist.Normal(0.5 * x + jnp.cos(u), self.scale)

    def emission(self, x, u):
        return dist.Normal(x, 0.5)

pushed = Pushed(jnp.array(0.3))

def moving():
    size = numpyro.param("size", 1.0, constraint=dist.constraints.positive)
    return sk.models.LocalLevel(size, 1.0).with_initial([0.0], [1.0])

def level():
    positive = dist.constraints.positive
    return sk.models.LocalLevel(
        numpyro.param("level", 1e3, constraint=positive),
        numpyro.param("noise", 1e4, constraint=positive),
    )

def drawn():
    return sk.models.LocalLevel(
        numpyro.sample("level", dist.HalfNormal(3e3)), numpyro.sample("noise", dist.HalfNormal(3e4))
    )

nothing = 3
"""
CHANGED = MODELS.replace(
    'numpyro.param("level"', 'numpyro.param("drift", 1.0) * numpyro.param("level"'
)
SOMETIMES = ("probabilities", "params")
KEYS = ["t", "time", "observed", "mean", "sd", "quantiles", "score", "alarm", "skipped"]
LOCAL = ("--model", "cli_models.py:local", "--engine", "Kalman")
WALK = ("--model", "cli_models.py:walk", "--engine", "Kalman()")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, data and a fit; the working folder of every test here."""
    place = tmp_path_factory.mktemp("command line")
    (place / "cli_models.py").write_text(MODELS)
    (place / "cli_changed.py").write_text(CHANGED)
    (place / "other").mkdir()
    (place / "other" / "statistics.py").write_text("model = 1")
    (place / "cli_broken.py").write_text("import ssmkit\n1 / 0\n")
    nile = sk.data.load("nile").rename("flow")
    nile.iloc[[3, 4]] = np.nan
    nile.to_csv(place / "nile.csv")
    before, path = Path.cwd(), list(sys.path)
    os.chdir(place)
    fit = "fit nile.csv --model cli_models.py:level --time date --step YS --out fitted --engine"
    assert main([*fit.split(), "GradientFit(evidence=Kalman())"]) == 0
    yield place
    os.chdir(before)
    sys.path[:] = path
    for name in ("cli_models", "cli_changed", "level"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the program in this process: exit code, rows, standard error."""

    def once(*arguments, lines=""):
        text = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        code = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        is_rows = told.out.startswith("{")
        return code, [json.loads(row) for row in told.out.splitlines() if is_rows], told.err

    return once


def values(rows, key="mean"):
    return np.array([list(row[key].values()) for row in rows], float)


# engines and models by name


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("Kalman", sk.Kalman()),
        ("sk.SMC(num_particles=50, threshold=1.0)", sk.SMC(50, threshold=1.0)),
        ("GradientFit(evidence=Kalman())", sk.GradientFit(evidence=sk.Kalman())),
        ("SMC(resampling='residual', smoother=None)", sk.SMC(resampling="residual", smoother=None)),
    ],
)
def test_engines_are_read_from_text(text, engine):
    assert read_engine(text) == engine


def test_an_optimiser_is_read_from_text():
    engine = read_engine("GradientFit(Kalman(), optimizer(optax.adam, 1e-2))")
    assert repr(engine.optimizer) == "optimizer(adam, 0.01)"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Kalmann", UnknownNameError),
        ("sk.os.system('ls')", UnknownNameError),
        ("__import__('os').system('ls')", OptionError),
        ("data.load('nile')", UnknownNameError),
        ("load_posterior('x')", OptionError),
        ("Kalman().__class__()", OptionError),
        ("SMC(num_particles=10**9)", OptionError),
        ("SMC(num_particles=[i for i in (1,)])", OptionError),
        ("SMC(lookahead=lambda x: x)", OptionError),
        ("SMC(**{})", OptionError),
        ("SMC(particles=5)", OptionError),
        ("optax.adam(1e-3)", OptionError),
        ("3", OptionError),
        ("Kalman(", OptionError),
        ("", OptionError),
    ],
)
def test_text_that_is_no_engine_is_refused_and_never_run(text, error):
    with pytest.raises(error):
        read_engine(text)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("cli_models", OptionError, "module:name"),
        ("nowhere.py:model", OptionError, "no such file"),
        ("no_such_module:model", OptionError, "no module"),
        ("cli_models.py:levle", UnknownNameError, "no levle"),
        ("cli_models.py:Pushed", EngineError, "the class Pushed"),
        ("cli_models.py:nothing", EngineError, "model or a program"),
        ("other/statistics.py:model", OptionError, "another module called statistics"),
        ("cli_broken.py:model", ModelError, "ZeroDivisionError"),
    ],
)
def test_names_that_are_no_models_are_refused(folder, monkeypatch, name, error, says):
    monkeypatch.setattr("sys.path", list(sys.path))
    with pytest.raises(error, match=says):
        load_target(name)


def test_a_module_of_the_current_folder_is_found(folder):
    by_name, by_path = (load_target(f"cli_models{end}:pushed").target for end in ("", ".py"))
    assert type(by_name) is type(by_path)


# lines, times


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1871-01-01,1", "other columns"),
        ("1871-01-01,1,2,3", "other columns"),
        ("1871-01-01,much,2", "column y holds no number"),
        ("1871-01-01,1_000,2", "no number"),
        ("1871-01-01,inf,2", "infinity"),
        ("1871-01-01,1,", "is an input, and missing"),
        ('1871-01-01,"1,2', "no line of CSV"),
    ],
)
def test_malformed_lines_of_csv(line, says):
    parser = begin("date,y,u", Columns(None, ("u",), "date"))
    assert parser.columns.observations == ("y",)
    with pytest.raises(DataError, match=says):
        parser.read(line)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"y": 1}', "other columns"),
        ('{"y": "1", "u": true}', "no number"),
        ('{"y": -Infinity, "u": 1}', "infinity"),
        ('{"y": [1], "u": 1}', "no number"),
        ("[1, 2]", "no object"),
        ('{"y": 1', "no line of JSON"),
    ],
)
def test_malformed_lines_of_json(line, says):
    with pytest.raises(DataError, match=says):
        begin('{"y": 1, "u": 2}', Columns(None, ("u",))).read(line)


@pytest.mark.parametrize(
    ("line", "says"),
    [("1,2", "no header"), ("a,a", "names of their own"), ("a,", "names"), ("a,b", "no column y")],
)
def test_headers_are_refused(line, says):
    with pytest.raises(DataError, match=says):
        begin(line, Columns(("y",)))


def test_missing_values_have_many_names():
    parser = begin("y", Columns())
    for cell in ("nan", "NA", "null", "None", '""'):
        assert np.isnan(parser.read(cell).values).all()


@pytest.mark.parametrize(
    ("step", "last", "now", "between"),
    [
        ("MS", "2020-01-01", "2020-04-01", ["2020-02-01", "2020-03-01"]),
        ("15min", "2020-01-01T00:00", "2020-01-01T00:30", ["2020-01-01T00:15:00"]),
        ("D", "2020-01-01T00:00+00:00", "2020-01-02T00:00+00:00", []),
        ("0.1", 0.3, 0.6, [0.4, 0.5]),
        ("1", "7", "9", [8]),
        (None, "2020-01-01", "2030-01-01", []),
    ],
)
def test_gaps_become_steps(step, last, now, between):
    clock = Clock(step, moment(last))
    found = [time.written for time in clock.advance(moment(now))]
    assert found == (pytest.approx(between) if step == "0.1" else between)
    assert clock.last.written == moment(now).written


@pytest.mark.parametrize(
    ("step", "last", "now", "says"),
    [
        (None, "2020-01-02", "2020-01-01", "not after"),
        (None, "2020-01-02", "2020-01-02", "not after"),
        (None, 3, 2, "not after"),
        (None, "2020-01-02", "3", "another kind"),
        (None, "2020-01-02", "2020-01-03T00:00+00:00", "another kind"),
        ("1", "2020-01-02", "2020-01-03", "another kind"),
        ("MS", "2020-01-01", "2020-01-15", "no number of steps"),
        ("2", 1, 4, "no number of steps"),
        ("1s", "2020-01-01", "2021-01-01", "100,000 steps"),
        ("1", 0, 1e9, "100,000 steps"),
    ],
)
def test_times_that_do_not_go_on(step, last, now, says):
    clock = Clock(step, moment(last))
    with pytest.raises(DataError, match=says):
        clock.advance(moment(now))
    assert clock.last.written == last


@pytest.mark.parametrize("cell", ["soon", "03/04/2020", None, True, "nan", float("inf"), ""])
def test_no_times(cell):
    with pytest.raises(DataError, match="no time"):
        moment(cell)


@pytest.mark.parametrize("text", ["fortnight", "-1", "0", "-1D", "nan"])
def test_no_steps(text):
    with pytest.raises(OptionError, match="--step"):
        Clock(text, None)


def test_numbers_that_are_not_finite_become_null():
    belief = sk.models.LocalLevel(1.0, 1.0)
    stream = sk.stream(0, sk.Kalman(), belief).update(float("nan"))  # diffuse still
    writer = Writer((0.5,))
    row = writer.row(Told(0, None, False, -np.inf), ["level"], writer.columns(stream))
    assert json.loads(row)["sd"] == {"level": None} and json.loads(row)["score"] is None


# finished files


def test_fit_filter_forecast(run, folder):
    fit = sk.load_posterior("fitted", using=[load_target("cli_models.py:level").target.fn])
    code, rows, err = run("filter", "nile.csv", "--fit", "fitted")
    assert code == 0 and "as it says itself" in err and len(rows) == 100
    assert [list(row) for row in rows] == [KEYS] * 100
    assert rows[3]["time"] == "1874-01-01" and not rows[3]["observed"] and rows[3]["score"] is None
    np.testing.assert_allclose(values(rows), fit.filtered.mean(), rtol=1e-12)
    scores = [row["score"] for row in rows if row["observed"]]
    np.testing.assert_allclose(sum(scores), fit.log_evidence, rtol=1e-12)
    _, rows, _ = run("filter", "nile.csv", "--fit", "fitted", "--smooth", "--quantiles", "0.1")
    np.testing.assert_allclose(values(rows, "sd"), fit.states.std(), rtol=1e-12)
    assert list(rows[0]["quantiles"]) == ["0.1"]
    _, there, _ = run("forecast", "--fit", "fitted", "--steps", 3)
    code, here, _ = run("forecast", "nile.csv", "--fit", "fitted", "--steps", 3)
    assert code == 0 and here == there
    assert [(row["t"], row["time"]) for row in here][::2] == [
        (100, "1971-01-01"),
        (102, "1973-01-01"),
    ]
    expected = sk.forecast(0, fit, 3).observations
    np.testing.assert_allclose(values(here, "sd")[:, 0], expected.std(), rtol=1e-12)
    assert list(here[0]["mean"]) == ["flow"]


def test_a_fit_with_draws_is_streamed(run):
    engine = "GradientFit(evidence=Kalman(), laplace_draws=5)"
    model = ("--model", "cli_models.py:drawn")
    code, *_ = run(
        "fit", "nile.csv", *model, "--engine", engine, "--time", "date", "--out", "draws"
    )
    assert code == 0
    _, filtered, _ = run("filter", "nile.csv", "--fit", "draws")
    assert np.isfinite(filtered[-1]["score"])
    code, rows, _ = run("stream", "--fit", "draws", lines="date,flow\n1971-01-01,740\n")
    assert code == 0 and rows[0]["t"] == 100 and np.isfinite(rows[0]["score"])


def test_the_page_runs_as_printed(run, folder, monkeypatch):
    page = ROOT / "docs" / "command-line.md"
    (folder / "page").mkdir()
    monkeypatch.chdir(folder / "page")
    Path("level.py").write_text(code_blocks(page)[0])
    sk.data.load("nile").rename("flow").to_csv("nile.csv")
    Path("new.csv").write_text("date,flow\n1971-01-01,740\n1972-01-01,\n")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        name, *arguments = shlex.split(line.split(" < ")[0])
        lines = Path(line.split(" < ")[1]).read_text() if " < " in line else ""
        code, *_, err = run(*arguments, lines=lines)
        assert (name, code) == ("ssmkit", 0), err
    table = page.read_text().split("## Rows")[1].split("## ")[0]
    firsts = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = re.findall(r"\w+", " ".join(firsts))
    assert [key for key in documented if key not in SOMETIMES] == KEYS


# streams


def test_a_stream_goes_on_from_a_fit(run):
    lines = "date,flow\n1971-01-01,740\n1972-01-01,\n1974-01-01,800\n"
    code, rows, err = run("stream", "--fit", "fitted", "--run-length", 1000, lines=lines)
    assert code == 0 and "end of the input: 104 observations" in err
    assert [row["t"] for row in rows] == [100, 101, 102, 103]
    assert [row["time"][:4] for row in rows] == ["1971", "1972", "1973", "1974"]
    assert [row["observed"] for row in rows] == [True, False, False, True]
    assert [row["alarm"] for row in rows] == [False] * 4
    fit = sk.load_posterior("fitted", using=[load_target("cli_models.py:level").target.fn])
    flow = sk.stream(0, sk.Kalman(), fit)
    expected = [flow.update(y).mean() for y in (740.0, np.nan, np.nan, 800.0)]
    np.testing.assert_allclose(values(rows), expected, rtol=1e-12)
    code, rows, err = run("stream", "--fit", "fitted", lines="date,flow\n1970-01-01,740\n")
    assert code == 1 and rows == [] and "DataError: line 2: the time is not after" in err


def test_csv_and_json_give_the_same_rows(run):
    csv = "b,a\n1,2\n,0.5\n3,nan\n"
    as_json = '{"a": 2, "b": 1}\n{"a": 0.5, "b": null}\n\n{"b": 3, "a": NaN}'
    order = ("--columns", "a,b")
    _, one, _ = run("stream", *WALK, *order, lines=b"\xef\xbb\xbf" + csv.encode())
    _, other, _ = run("stream", *WALK, *order, lines=as_json)
    assert one == other and len(one) == 3
    assert list(one[0]["mean"]) == ["up", "down"]
    model = load_target("cli_models.py:walk").target
    posterior = sk.infer(0, sk.Kalman(), model, np.array([[2, 1], [0.5, np.nan], [np.nan, 3]]))
    np.testing.assert_allclose(values(one), posterior.filtered.mean(), rtol=1e-10)
    _, filtered, _ = run("filter", "-", *WALK, *order, lines=csv)
    np.testing.assert_allclose(values(filtered), values(one), rtol=1e-10)


def test_inputs_counts_and_finite_states(run):
    pushed = ("--model", "cli_models.py:pushed", "--engine", "ExtendedKalman", "--inputs", "u")
    _, rows, _ = run("stream", *pushed, lines="u,y\n0.1,1\n0.2,\n0.3,2\n")
    model, us = load_target("cli_models.py:pushed").target, np.array([0.1, 0.2, 0.3])
    posterior = sk.infer(0, sk.ExtendedKalman(), model, np.array([1, np.nan, 2]), us)
    np.testing.assert_allclose(values(rows)[:, 0], posterior.filtered.mean(), rtol=1e-10)
    Path("past.csv").write_text("u,y\n0.1,1\n0.2,\n0.3,2\n")
    Path("future.csv").write_text("u\n0.4\n0.5\n")
    ahead = ("forecast", "past.csv", *pushed, "--steps", 2)
    code, _, err = run(*ahead)
    assert code == 1 and "future inputs are missing" in err
    _, rows, _ = run(*ahead, "--future", "future.csv")
    expected = sk.forecast(0, posterior, 2, np.array([0.4, 0.5])).observations.mean()
    np.testing.assert_allclose(values(rows)[:, 0], expected, rtol=1e-10)
    counts = ("--model", "cli_models.py:counts", "--engine", "SMC(50)")
    code, rows, err = run("stream", *counts, "--on-error", "skip", lines="n\n3\n\nNA\n2.5\n4\n")
    assert code == 0 and [row["observed"] for row in rows] == [True, False, True]
    assert "line 5" in err and "whole numbers" in err
    coin = ("--model", "cli_models.py:coin", "--engine", "ForwardBackward")
    _, rows, _ = run("stream", *coin, lines="y\n0.1\n3.2\n")
    assert "mean" not in rows[0] and sum(rows[1]["probabilities"].values()) == pytest.approx(1)


BAD = "t,a,b\n1,1,2\n2,1\n3,x,1\n2,1,1\n1,1,1\n4,inf,1\n5,1,1\n\xff\n6,2,2\n".encode("latin-1")


def test_malformed_lines_are_skipped_and_reported(run):
    code, rows, err = run("stream", *WALK, "--time", "t", "--on-error", "skip", lines=BAD)
    assert code == 0 and [row["time"] for row in rows] == [1, 2, 5, 6]
    assert re.findall(r"skipped line (\d+)", err) == ["3", "4", "6", "7", "9"]
    good = "t,a,b\n1,1,2\n2,1,1\n5,1,1\n6,2,2\n"
    assert rows == run("stream", *WALK, "--time", "t", lines=good)[1]


def test_a_malformed_line_stops_and_a_mended_one_goes_on(run, tmp_path):
    command = ("stream", *WALK, "--time", "t", "--checkpoint", tmp_path / "c")
    command += ("--output", tmp_path / "rows")
    good = "t,a,b\n1,1,2\n2,1,1\n3,0,1\n4,0,0\n"
    code, _, err = run(*command, lines=good.replace("3,0,1", "3,0"))
    assert code == 1 and "DataError: line 4: this line has other columns" in err
    assert len((tmp_path / "rows").read_text().splitlines()) == 2
    code, _, err = run(*command, lines=good)
    assert code == 0 and "resumed" in err
    whole = run("stream", *WALK, "--time", "t", lines=good)[1]
    assert [json.loads(row) for row in (tmp_path / "rows").read_text().splitlines()] == whole


def test_an_observation_of_no_use_is_flagged(run):
    lines = "y\n1000\n1e200\n1100\n"
    code, rows, err = run("stream", *LOCAL, "--run-length", 100, lines=lines)
    assert code == 0 and [row["skipped"] for row in rows] == [False, True, False]
    assert rows[1]["score"] is None and "line 3" in err


def test_an_alarm_is_raised_once_and_stays(run):
    lines = "y\n" + "1000\n1010\n" * 5 + "9000\n100\n" * 6
    _, rows, err = run("stream", *LOCAL, "--run-length", 100, lines=lines)
    alarms = [row["alarm"] for row in rows]
    first = alarms.index(True)
    assert first >= 10 and all(alarms[first:]) and err.count("alarm at") == 1
    assert f"alarm at t={first}:" in err


@pytest.fixture
def checkpointed(run, tmp_path):
    """A checkpoint and its output after three of five rows."""
    lines = "a,b\n" + "".join(f"{i},{-i}\n" for i in range(5))
    place = ("--checkpoint", tmp_path / "state", "--output", tmp_path / "rows", "--every", 1)
    assert run("stream", *WALK, *place, lines="".join(lines.splitlines(True)[:4]))[0] == 0
    return lines, place


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--engine": "SMC(10)"}, "engine differs"),
        ({"--model": "cli_changed.py:local", "--columns": "a"}, "differs"),
        ({"--seed": "1"}, "seed differs"),
        ({"--quantiles": "0.5"}, "quantiles differs"),
        ({"--columns": "b,a"}, "columns differs"),
        ({"--run-length": "50"}, "run_length differs"),
        ({"--output": "elsewhere"}, "elsewhere is not what"),
        ({"lines": "a,b\n9,9\n9,9\n9,9\n9,9\n"}, "does not begin as it did"),
        ({"lines": "a,b\n0,0\n"}, "does not begin as it did"),
        ({"lines": ""}, "empty"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(run, checkpointed, change, says):
    lines, place = checkpointed
    before = [path.read_bytes() for path in place[1:4:2]]
    command = dict(zip((*WALK, *place)[::2], (*WALK, *place)[1::2], strict=True))
    lines = change.pop("lines", lines) if "lines" in change else lines
    command |= change
    code, rows, err = run(
        "stream", *(part for pair in command.items() for part in pair), lines=lines
    )
    assert code == 1 and rows == [] and says in err
    assert [path.read_bytes() for path in place[1:4:2]] == before
    assert not Path("elsewhere").exists()


def test_parameters_that_are_learned_are_told(run):
    engine = "OnlineVariational(num_steps=0, ascent=StochasticAscent(burn_in=1))"
    lines = "y\n0.5\n2.5\n-1.5\n"
    code, rows, _ = run(
        "stream", "--model", "cli_models.py:moving", "--engine", engine, lines=lines
    )
    sizes = [row["params"]["size"] for row in rows]
    assert code == 0 and list(rows[0]) == [*KEYS, "params"]
    assert sizes[0] == 1.0 and sizes[1] > 1.0  # a jump: the level moves more than it was thought


@pytest.mark.parametrize("damage", ["half", "bit", "schema", "python", "output", "no checkpoint"])
def test_a_damaged_checkpoint_is_refused(run, checkpointed, damage, monkeypatch):
    lines, place = checkpointed
    state, output = place[1], place[3]
    held = state.read_bytes()
    if damage == "half":
        state.write_bytes(held[: len(held) // 2])
    elif damage == "bit":
        state.write_bytes(held.replace(b'"digest"', b'"digesd"'))
    elif damage == "schema":
        monkeypatch.setattr("ssmkit.serialise.SCHEMA", 2)
    elif damage == "python":
        sk.stream(0, sk.Kalman(), load_target("cli_models.py:walk").target).save(state)
    elif damage == "output":
        output.write_bytes(output.read_bytes()[:-1])
    else:
        state.unlink()
    before = [path.read_bytes() for path in (state, output) if path.exists()]
    code, rows, err = run("stream", *WALK, *place, lines=lines)
    assert code == 1 and rows == [] and "SaveError" in err
    assert [path.read_bytes() for path in (state, output) if path.exists()] == before


def test_two_processes_never_write_to_one_output(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = Output(path, None)
    first.open()
    first.write(b"row\n")
    second = Output(path, 0)
    with pytest.raises(SaveError, match="another process"):
        second.open()
    second.close()
    assert path.read_bytes() == b"row\n"
    first.close()
    third = Output(path, 0)
    third.open()
    third.close()
    assert path.read_bytes() == b""


def test_a_live_input_goes_on(run, checkpointed):
    lines, place = checkpointed
    rest = "a,b\n3,-3\n4,-4\n"
    code, _, err = run("stream", *WALK, *place, "--live", lines=rest)
    assert code == 0 and "resumed" in err
    rows = [json.loads(row) for row in place[3].read_text().splitlines()]
    assert rows == run("stream", *WALK, lines=lines)[1]


# what is refused


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("stream", 2, "--fit FILE, or --model"),
        ("stream --fit fitted --every 5", 2, "go with --checkpoint"),
        ("stream --model cli_models.py:local --engine Kalmann", 2, "did you mean Kalman"),
        ("stream --model cli_models.py:level --engine Kalman", 1, "free sites"),
        ("stream --model cli_models.py:local --engine NUTS(evidence=Kalman())", 2, "EngineError"),
        ("stream --model cli_models.py:local --engine Kalman --columns y", 1, "no column y"),
        ("stream --model cli_models.py:walk --engine Kalman", 1, "number of columns"),
        ("stream --fit fitted --model cli_changed.py:level", 1, "lacks drift"),
        ("stream --fit nowhere", 1, "nowhere"),
        ("stream --fit nile.csv", 1, "not written by ssmkit"),
        ("filter nowhere.csv --fit fitted", 1, "nowhere.csv"),
        ("filter nile.csv --fit fitted --engine Kalman", 2, "brings its engine"),
        ("forecast --model cli_models.py:local --engine Kalman --steps 2", 2, "no file"),
        ("filter nile.csv --model cli_models.py:local --engine Kalman", 1, "--time and"),
        (
            "fit nile.csv --model cli_models.py:level --engine Kalman --time date --out new",
            1,
            "free",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(run, command, code, says):
    found, rows, err = run(*command.split(), lines="flow\n1\n2\n")
    assert found == code and rows == [] and says in err
    assert "ssmkit: error: " in err and "Traceback" not in err
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "arguments",
    ["--every 0", "--every 5m", "--every 1.5", "--quantiles 0,1", "--quantiles x", "--inputs a,a"],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["stream", *LOCAL, *arguments.split()])
    assert stop.value.code == 2


def test_a_fit_that_was_saved_in_python_needs_its_model(run, folder):
    model = load_target("cli_models.py:local").target
    sk.infer(0, sk.Kalman(), model, np.ones(5)).save("plain")
    code, _, err = run("stream", "--fit", "plain", lines="y\n1\n")
    assert code == 1 and "does not say where its model is" in err
    code, rows, _ = run("stream", "--fit", "plain", "--model", LOCAL[1], lines="y\n1\n")
    assert code == 0 and rows[0]["t"] == 5


def test_a_failing_run_leaves_the_old_file(run, folder):
    Path("kept.jsonl").write_text("before")
    Path("cut.csv").write_text("y\n1\nx\n")
    code, *_ = run("filter", "cut.csv", *LOCAL, "--output", "kept.jsonl")
    assert code == 1 and Path("kept.jsonl").read_text() == "before"


# the real program


@pytest.fixture
def start(folder):
    """Start the real program; what is still running at the end is killed."""
    root = str(Path(sk.__file__).parent.parent)
    environment = os.environ | {
        "PYTHONPATH": root,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    running = []

    def once(*arguments, stdin=subprocess.PIPE):
        command = [sys.executable, "-m", "ssmkit.cli", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        running.append(process)
        return process

    yield once
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


NUM_ROWS, NUM_KILLS = 1500, 6


@pytest.fixture(scope="module")
def long_file(folder):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([1, 1, 1, 3], NUM_ROWS))
    noise = rng.normal(size=(NUM_ROWS, 2))
    rows = [f"{t},{a:.5f},{b:.5f}" for t, (a, b) in zip(times, noise, strict=True)]
    rows[100] = "cut off in the mi"
    Path("long.csv").write_text("\n".join(["t,a,b", *rows]))
    return Path("long.csv").resolve()


def test_killed_at_random_points_the_output_is_the_same(start, long_file, tmp_path):
    rng = random.Random(int(os.environ.get("SSMKIT_KILL_SEED", "0")))
    command = ("stream", *WALK, "--time", "t", "--step", "1", "--on-error", "skip")
    command += ("--run-length", "1000", "--output")

    def begin(*where):
        with long_file.open("rb") as lines:
            return start(*command, *where, stdin=lines)

    assert begin(tmp_path / "whole").wait() == 0
    whole = (tmp_path / "whole").read_bytes()
    output = tmp_path / "rows"
    where = (output, "--checkpoint", tmp_path / "state", "--every", "40")
    for target in sorted(rng.uniform(0, 0.8) for _ in range(NUM_KILLS)):
        process = begin(*where)
        while process.poll() is None and not (
            output.exists() and output.stat().st_size >= target * len(whole)
        ):
            time.sleep(1e-3)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    last = begin(*where)
    assert last.wait() == 0, last.stderr.read()
    assert b"resumed from" in last.stderr.read()
    assert output.read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "rows", "state"}


def feed(process, text):
    process.stdin.write(text.encode())
    process.stdin.flush()


def test_a_row_comes_at_once_and_ctrl_c_keeps_the_state(start, run, tmp_path):
    place = ("--checkpoint", tmp_path / "state", "--every", "1000")
    process = start("stream", *WALK, *place)
    feed(process, "a,b\n")
    rows = []
    for i in range(3):
        feed(process, f"{i},{-i}\n")
        rows.append(json.loads(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert b"stopped by SIGINT after 3 observations" in process.stderr.read()
    lines = "a,b\n" + "".join(f"{i},{-i}\n" for i in range(5))
    code, rest, _ = run("stream", *WALK, *place, lines=lines)
    assert code == 0 and [row["t"] for row in rest] == [3, 4]
    assert rows + rest == run("stream", *WALK, lines=lines)[1]


def test_a_broken_pipe_ends_it_quietly(start):
    process = start("stream", *WALK)
    feed(process, "a,b\n1,1\n")
    assert process.stdout.readline()
    process.stdout.close()
    try:
        for _ in range(200):
            feed(process, "1,1\n")
            time.sleep(1e-3)
        process.stdin.close()
    except BrokenPipeError:
        pass
    assert process.wait() == 141
    assert b"Error" not in process.stderr.read()
