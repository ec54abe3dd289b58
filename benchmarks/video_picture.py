"""The picture of the small video: the score by time, and one rollout beside the film."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from video_film import HIDDEN, SIDE, Film, render, screened

PICTURE = Path(__file__).resolve().parent / "results" / "video.png"
LEADS = range(0, 20, 2)
WINDOW = 40


def draw(film: Film, runs: dict[str, Any]) -> None:
    """Draw it."""
    run = runs["learned"]
    hidden = film.places[:, 1] > HIDDEN
    # the start whose next frames show the object going behind the screen and coming out of it
    changes = [np.sum(np.diff(hidden[t + 1 : t + 21].astype(int)) != 0) for t in run.starts]
    which = int(np.argmax(changes))
    now = int(run.starts[which])
    figure = plt.figure(figsize=(10, 6.6))
    top, strip = figure.add_gridspec(2, 1, height_ratios=(1, 2.2), hspace=0.28)
    curve(figure.add_subplot(top), film, runs)
    grid = strip.subgridspec(4, len(LEADS), hspace=0.08, wspace=0.08)
    bare, rolled = render(film.places[now + 1 : now + 21]), run.rollouts[which]
    rows = {"film": screened(bare), "rollout": screened(rolled)}
    rows |= {"film,\nno screen": bare, "rollout,\nno screen": rolled}
    for row, (name, frames) in enumerate(rows.items()):
        for column, lead in enumerate(LEADS):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(frames[lead].reshape(SIDE, SIDE), vmin=0, vmax=1, cmap="gray")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                away = "\nhidden" if hidden[now + 1 + lead] else ""
                axis.set_title(f"+{lead + 1}{away}", fontsize=9)
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")


def curve(axis: Any, film: Film, runs: dict[str, Any]) -> None:
    """Scores below those of known places, averaged over a round."""
    for name, run in runs.items():
        values = run.scores - film.log_densities[: len(run.scores)]
        smooth = np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")
        axis.plot(np.arange(WINDOW, len(values) + 1), smooth, label=f"motion {name}", lw=1.2)
    axis.set_ylabel("score, nats below\nknown places", fontsize=9)
    axis.set_xlabel("frame", fontsize=9, loc="right")
    axis.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
