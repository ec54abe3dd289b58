"""Draw the picture of the README: `python docs/readme_picture.py` writes `docs/images/nile.png`."""

from pathlib import Path

import jax
import matplotlib

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist

import ssmkit as sk

PATH = Path(__file__).resolve().parent / "images" / "nile.png"


def level():
    """The local level model, both variances free."""
    positive = dist.constraints.positive
    return sk.models.LocalLevel(
        level_variance=numpyro.param("level", 1e3, constraint=positive),
        noise_variance=numpyro.param("noise", 1e4, constraint=positive),
    )


def draw():
    """Data, level with its band, and a forecast fan of ten years, on one pair of axes."""
    nile = sk.data.load("nile")
    fit = sk.infer(0, sk.GradientFit(evidence=sk.Kalman()), level, nile)
    ahead = sk.forecast(1, fit, num_steps=10)
    figure, ax = plt.subplots(figsize=(9.0, 3.9), layout="constrained")
    sk.plots.states(fit, "level", ax=ax)
    sk.plots.forecast(ahead, ax=ax)
    ax.axvline(nile.index[-1], color="grey", linewidth=0.8, linestyle=":")
    ax.set_title("The Nile at Aswan, and the ten years after", loc="left", fontsize=11)
    ax.set_ylabel("flow, 10⁸ m³ a year")
    handles, labels = ax.get_legend_handles_labels()
    names = {"90 % interval": "level, 90 %", "mean": "level", "95 %": "forecast, 50, 80 and 95 %"}
    chosen = {names.get(label, label): h for h, label in zip(handles, labels, strict=True)}
    for label in ("80 %", "50 %", "forecast mean"):
        chosen.pop(label)
    ax.get_legend().remove()
    style = {"frameon": False, "fontsize": 8.5, "ncols": 1}
    ax.legend(list(chosen.values()), list(chosen), loc="lower left", **style)
    figure.savefig(PATH, dpi=130)
    return figure


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    draw()
    print(f"{PATH}: {PATH.stat().st_size / 1000:.0f} kB")
