"""The groups of an ArviZ export, each a dataset with named dims, dates and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit.interop.joint import JointDraws, has_drawn_params
from ssmkit.interop.variables import SAMPLE, dataset, event_dims, named_leaves, times_of, variable
from ssmkit.measures import effective_sample_size
from ssmkit.posterior import Posterior

if TYPE_CHECKING:
    import xarray as xr

NOTES = {
    "point": "states given parameters fitted as a point (or a fixed model): independent draws in "
    "one chain, so R-hat says nothing; uncertainty about parameters is not in them",
    "chains": "equally weighted joint draws of parameters and states, in their chains; where "
    "states were computed for a part of the draws, only these are here, and R-hat of all draws is "
    "that of weighted_posterior",
    "resampled": "equally weighted joint draws, picked by weight with repetition: R-hat says "
    "nothing; effective_sample_size of weighted_posterior says what they are worth",
    "one_step": "log p(y_t | y_0 … y_{t-1}, parameters) in nats, 0 where nothing was observed; "
    "loo and waic of it are not those of independent points",
    "fixed": "fitted as a point: no draws",
}
STATISTICS = {  # numpyro's names to ArviZ's
    "diverging": "diverging",
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "energy": "energy",
}


def posterior_group(
    posterior: Posterior, draws: JointDraws, paths: np.ndarray | None
) -> xr.Dataset:
    """Joint draws of parameters and states."""
    variables: dict[str, Any] = {}
    if draws.params is not None:
        named = named_leaves(posterior.params.flat())
        variables = {n: variable(n, a[draws.params], SAMPLE) for n, a in named.items()}
    kind = "point" if draws.params is None else "chains"
    if paths is not None:
        variables["states"] = _states(posterior, paths)
    note = NOTES["resampled" if draws.resampled else kind]
    return dataset(variables, draws.states.shape, note)


def weighted_group(posterior: Posterior) -> xr.Dataset | None:
    """All parameter draws as they are, with their log weights."""
    if not has_drawn_params(posterior):
        return None
    params = posterior.params
    variables = {n: variable(n, a, SAMPLE) for n, a in named_leaves(params.values).items()}
    variables["log_weights"] = variable("log_weights", np.asarray(params.log_weights), SAMPLE)
    ess = float(effective_sample_size(params.log_weights.ravel()))
    data = dataset(variables, params.log_weights.shape, "all draws; weights are unnormalised")
    return data.assign_attrs(effective_sample_size=ess)


def fixed_group(posterior: Posterior) -> xr.Dataset | None:
    """Parameters fitted as a point."""
    import xarray as xr

    if "params" not in posterior.parts or has_drawn_params(posterior):
        return None
    named = named_leaves(posterior.params.flat())
    variables = {n: variable(n, a[0], ()) for n, a in named.items()}
    return xr.Dataset(variables, attrs={"note": NOTES["fixed"]})


def likelihood_group(posterior: Posterior, draws: JointDraws) -> xr.Dataset | None:
    """One-step-ahead log likelihood; without draw axes at a point, so that `loo` refuses it."""
    import xarray as xr

    terms = posterior.parts.get("log_likelihood")
    if terms is None:
        return None
    terms, coords = np.asarray(terms), times_of(posterior)
    if draws.params is None:
        data = xr.Dataset({"one_step": xr.DataArray(terms[0], coords, ("time",))})
        return data.assign_attrs(note=NOTES["one_step"])
    one_step = xr.DataArray(terms[draws.states], coords, (*SAMPLE, "time"))
    return dataset({"one_step": one_step}, draws.states.shape, NOTES["one_step"])


def statistics_group(posterior: Posterior, draws: JointDraws) -> xr.Dataset | None:
    """What the sampler reports, for the draws of the group ``posterior``."""
    report = posterior.diagnostics.get("sample_stats")
    if report is None or draws.params is None:
        return None
    index = draws.params
    flat = {name: np.asarray(values).ravel()[index] for name, values in report.items()}
    found = {new: flat[old] for old, new in STATISTICS.items() if old in flat}
    if "potential_energy" in flat:
        found["lp"] = -flat["potential_energy"]
    if "n_steps" in found:
        found["tree_depth"] = np.log2(found["n_steps"]).astype(int) + 1
    found["draw_index"] = index % posterior.params.log_weights.shape[1]
    variables = {name: variable(name, values, SAMPLE) for name, values in found.items()}
    note = "draw_index is the place of a draw in its chain of weighted_posterior"
    return dataset(variables, index.shape, note)


def observed_group(posterior: Posterior) -> xr.Dataset:
    """Observations with dates and names; nan where missing."""
    import xarray as xr

    data = posterior.data
    values = np.asarray(data.ys)
    if data.mask is not None:
        values = np.where(np.asarray(data.mask), values, np.nan)
    coords, event = times_of(posterior), event_dims("observations", values.shape[1:])
    if values.ndim == 2:
        event, size = ("observation",), values.shape[1]
        names = data.labels.names or posterior.model.observation_names or ()
        fits = len(names) == size
        coords["observation"] = list(names) if fits else [f"y{i}" for i in range(size)]
    return xr.Dataset({"observations": xr.DataArray(values, coords, ("time", *event))})


def input_group(posterior: Posterior) -> xr.Dataset | None:
    """Inputs, one variable per leaf."""
    import xarray as xr

    if posterior.data.us is None:
        return None
    coords = times_of(posterior)
    variables = {}
    for name, leaf in named_leaves({"inputs": posterior.data.us}).items():
        dims = ("time", *event_dims(name, leaf.shape[1:]))
        variables[name] = xr.DataArray(leaf, coords, dims)
    return xr.Dataset(variables)


def _states(posterior: Posterior, paths: np.ndarray) -> xr.DataArray:
    import xarray as xr

    coords, event = times_of(posterior), event_dims("states", paths.shape[3:])
    if paths.ndim == 4:
        event, size = ("state",), paths.shape[3]
        names = posterior.states.marginals.labels.names or ()
        coords["state"] = list(names) if len(names) == size else [f"x{i}" for i in range(size)]
    return xr.DataArray(paths, coords, (*SAMPLE, "time", *event))
