"""Figures that were promised, and whether they were met."""

from typing import NamedTuple

import timing


class Target(NamedTuple):
    """A figure that was promised."""

    figure: str
    target: str
    measured: str
    met: bool | None

    def cells(self) -> list[str]:
        verdict = "–" if self.met is None else "met" if self.met else "MISSED"
        return [self.figure, self.target, self.measured, verdict]


def ratio_target(
    figure: str, ours: timing.Row, theirs: timing.Row, limit: float | None, unit: str = "ms"
) -> Target:
    """A ratio of CPU times; without a limit it is only reported."""
    target = "reported" if limit is None else f"≤ {limit:g} ×"
    if theirs.cpu is None or ours.cpu is None:
        return Target(figure, target, "missing", False)
    ratio = ours.cpu / theirs.cpu
    measured = f"{ratio:.2f} × ({ours.cpu:.1f} against {theirs.cpu:.1f} {unit})"
    return Target(figure, target, measured, None if limit is None else ratio <= limit)
