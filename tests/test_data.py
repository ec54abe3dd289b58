"""The data sets: dates, units, gaps, notes, and their place in the wheel."""

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssmkit import data
from ssmkit.errors import UnknownNameError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data"

# name: first date, last date, rows, frequency, missing cells
EXPECTED = {
    "nile": ("1871-01-01", "1970-01-01", 100, "YS-JAN", 0),
    "sunspots": ("1700-01-01", "2008-01-01", 309, "YS-JAN", 0),
    "co2": ("1958-03-01", "2001-12-01", 526, "MS", 5),
    "macrodata": ("1959-01-01", "2009-07-01", 203, "QS-JAN", 2),
    "sp500": ("1999-01-05", "2018-12-31", 5030, None, 0),
    "eurusd": ("1999-01-05", "2025-12-31", 6912, None, 0),
    "currencies": ("1999-02-01", "2025-12-01", 323, "MS", 0),
}

every_name = pytest.mark.parametrize("name", EXPECTED)


def test_names_are_the_csv_files() -> None:
    assert data.names() == sorted(EXPECTED)
    assert data.names() == sorted(path.stem for path in FOLDER.glob("*.csv"))


@every_name
def test_dates(name: str) -> None:
    first, last, rows, frequency, _ = EXPECTED[name]
    index = data.load(name).index
    assert isinstance(index, pd.DatetimeIndex)
    assert (index[0], index[-1], len(index)) == (pd.Timestamp(first), pd.Timestamp(last), rows)
    assert index.is_monotonic_increasing
    assert index.is_unique
    assert index.freqstr == frequency
    assert index.name == "date"


@every_name
def test_values_parse_without_loss(name: str) -> None:
    loaded = pd.DataFrame(data.load(name))
    missing = EXPECTED[name][-1]
    assert (loaded.dtypes == np.float64).all()
    assert int(loaded.isna().sum().sum()) == missing
    assert not np.isinf(loaded.to_numpy()).any()
    # The empty cells of the file, counted without pandas' idea of what means "missing".
    lines = (FOLDER / f"{name}.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert sum(line.split(",")[1:].count("") for line in lines) == missing


@every_name
def test_attributes(name: str) -> None:
    loaded = data.load(name)
    assert set(loaded.attrs) == {"units", "source", "licence", "description"}
    assert all(loaded.attrs.values())
    if isinstance(loaded, pd.DataFrame):
        assert list(loaded.attrs["units"]) == list(loaded.columns)
    else:
        assert isinstance(loaded.attrs["units"], str)
        assert loaded.name == name


@every_name
def test_a_note_beside_each_file_says_what_the_attributes_say(name: str) -> None:
    note = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    attributes = data.load(name).attrs
    assert attributes["licence"] in note
    assert attributes["source"] in note
    assert (FOLDER / f"{name}.csv").stat().st_size < 200_000


def test_the_months_without_a_co2_measurement_stay_missing() -> None:
    co2 = data.load("co2")
    gaps = [date.strftime("%Y-%m") for date in co2.index[co2.isna()]]
    assert gaps == ["1958-06", "1958-10", "1964-02", "1964-03", "1964-04"]


def test_well_known_values() -> None:
    nile = data.load("nile")
    assert nile["1871-01-01"] == 1120.0
    assert nile["1970-01-01"] == 740.0
    assert nile.mean() == pytest.approx(919.35)


@pytest.mark.parametrize("name", ["sp500", "eurusd"])
def test_returns_are_in_per_cent(name: str) -> None:
    assert 0.3 < data.load(name).std() < 3.0


def test_currencies_are_returns_against_the_dollar() -> None:
    currencies = data.load("currencies")
    assert currencies.std().between(1.0, 5.0).all()
    # the daily returns of a month add up to that month's
    monthly = data.load("eurusd").resample("MS").sum()["1999-02":]
    np.testing.assert_allclose(currencies["eur"], monthly, atol=1e-4)
    # the yen rose in October 2008, when all others fell
    crisis = currencies.loc["2008-10-01"]
    assert list(crisis[crisis > 0].index) == ["jpy"]


def test_loads_share_nothing() -> None:
    first = data.load("macrodata")
    first.attrs["units"]["cpi"] = "changed"
    first.iloc[:] = 0.0
    second = data.load("macrodata")
    assert second.attrs["units"]["cpi"] != "changed"
    assert second["cpi"].iloc[0] == pytest.approx(28.98)


@pytest.mark.parametrize(
    ("name", "part"),
    [("nlie", "did you mean 'nile'?"), ("../README", "expected: one of"), (3, "got: 3")],
)
def test_unknown_name(name: object, part: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        data.load(name)  # pyright: ignore[reportArgumentType]
    assert part in str(caught.value)
    assert "co2, currencies, eurusd, macrodata, nile, sp500, sunspots" in str(caught.value)


def test_the_wheel_holds_the_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "data" in wheel["only-include"]
    assert wheel["sources"]["data"] == "ssmkit/datasets"
