"""Fits: posteriors with a note of the model's name and of the columns that were used."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ssmkit.cli.lines import Columns
from ssmkit.cli.options import say
from ssmkit.cli.targets import Target, load_target
from ssmkit.errors import OptionError, ParameterError, SaveError
from ssmkit.models.base import StateSpaceModel
from ssmkit.models.programs import Program, build, free_sites
from ssmkit.posterior import Posterior
from ssmkit.serialise import load_posterior, read_note, write_tree
from ssmkit.stream.begin import draw_of

KIND = "posterior"


class Fit(NamedTuple):
    """A posterior, what was noted of its making, and the code that its file refers to."""

    posterior: Posterior
    note: Mapping[str, Any]
    using: tuple[Any, ...]

    @property
    def model(self) -> StateSpaceModel:
        """The model at one parameter value."""
        posterior = self.posterior
        return posterior.model if posterior.num_state_draws == 1 else draw_of(posterior.model, 0)


def save_fit(path: Path, posterior: Posterior, note: Mapping[str, Any]) -> None:
    """Write a fit, which `sk.load_posterior` reads as well.

    Raises:
        SaveError: something in it is no data.
    """
    write_tree(posterior, path, kind=KIND, note=note)


def load_fit(path: Path, model: str | None) -> Fit:
    """Read a fit.

    Args:
        path: the file.
        model: where the model is, in place of the name that the fit notes.

    Raises:
        SaveError: a damaged file, one of another version, or one that does not name its model.
        ParameterError: the model needs other parameters now than were fitted.
    """
    note = read_note(path, kind=KIND) or {}
    name = model or note.get("model")
    if name is None:
        raise SaveError(
            f"{path.name} does not say where its model is.",
            got="a posterior that was saved in Python",
            fix="--model module:name besides --fit",
        )
    say(f"{path}: a fit of {name}" + ("" if model else ", as it says itself"))
    using = load_target(name).using
    posterior = load_posterior(path, using)
    _check_parameters(name, posterior)
    return Fit(posterior, note, using)


def columns_of(arguments: argparse.Namespace, note: Mapping[str, Any]) -> Columns:
    """The columns that the user names; else those of the fit."""
    return Columns(
        _tuple(arguments.columns or note.get("columns")),
        _tuple(arguments.inputs or note.get("inputs")),
        arguments.time or note.get("time"),
    )


def note_of(name: str | None, columns: Columns, step: str | None, last: Any) -> dict[str, Any]:
    """What is noted of a fit: where its model is, and what its data were."""
    return {
        "model": name,
        "columns": list(columns.observations or ()),
        "inputs": list(columns.inputs or ()),
        "time": columns.time,
        "step": step,
        "last": last,
    }


def source_of(arguments: argparse.Namespace) -> Fit | Target:
    """The fit that the user names; else the model.

    Raises:
        OptionError: neither.
    """
    if arguments.fit is not None:
        return load_fit(arguments.fit, arguments.model)
    if arguments.model is None or arguments.engine is None:
        raise OptionError(
            "it is not said by what the data are read.",
            expected="--fit FILE, or --model module:name and --engine ENGINE",
        )
    return load_target(arguments.model)


def _tuple(names: Any) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _check_parameters(name: str, posterior: Posterior) -> None:
    """The program of today must build the fitted model from the parameters in the file."""
    program, params = posterior.target, posterior.parts.get("params")
    if not isinstance(program, Program) or params is None:
        return
    needed, there = set(free_sites(program)), set(params.values)
    if needed != there:
        lacking, idle = (", ".join(sorted(s)) for s in (needed - there, there - needed))
        raise ParameterError(
            f"the fit lacks {lacking}, which {name} needs."
            if lacking
            else f"the fit has {idle}, which {name} has not.",
            got=f"a fit of {', '.join(sorted(there))}",
            expected=f"one of {', '.join(sorted(needed))}",
            fix="fit again: the model has changed since",
        )
    built = build(program, jax.tree.map(lambda a: a[0], params.flat()))
    fitted = posterior.model if posterior.num_state_draws == 1 else draw_of(posterior.model, 0)
    if _outline(built) != _outline(fitted):
        raise ParameterError(
            f"{name} builds another model now than was fitted.",
            got=repr(fitted),
            expected=repr(built),
            fix="fit again: the model has changed since",
        )


def _outline(model: Any) -> Any:
    leaves, structure = jax.tree.flatten(model)
    return structure, [getattr(leaf, "shape", None) for leaf in leaves]
