"""Export to ArviZ: `InferenceData` on 0.2x, `DataTree` on 1.x, with the same groups in both.

| group | holds |
|---|---|
| ``posterior`` | equally weighted joint draws of parameters and states, ``(chain, draw)`` |
| ``weighted_posterior`` | all parameter draws as they are, with ``log_weights``; R-hat of these |
| ``fixed_parameters`` | parameters fitted as a point: no draws, so that none can be mistaken |
| ``log_likelihood`` | ``one_step``: log p(y_t | y_0 … y_{t-1}, parameters) in nats |
| ``sample_stats`` | what NUTS reports, for the draws in ``posterior`` |
| ``observed_data`` | ``observations``, nan where missing |
| ``constant_data`` | inputs |

R-hat and effective sample sizes judge NUTS in ``weighted_posterior``, which has all draws; in
``posterior`` they do so for the draws that have states. Draws at a point, Laplace draws and draws
picked by weight are no chains: their R-hat says nothing, and the worth of weighted draws is the
attribute ``effective_sample_size`` of ``weighted_posterior``.

``loo`` of ``one_step`` is *not* leave-one-out of independent points: the terms of a time series
depend on each other. Their sum per draw is the log likelihood of the parameters. Steps at which
every draw has the same value (nothing observed, or nothing identified yet) are to be left out
first, with ``.sel(time=...)``; ArviZ 1.x refuses them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmkit import keys
from ssmkit.errors import EngineError, NotComputed, OptionError
from ssmkit.interop.arviz_groups import (
    fixed_group,
    input_group,
    likelihood_group,
    observed_group,
    posterior_group,
    statistics_group,
    weighted_group,
)
from ssmkit.interop.joint import choose_draws, draw_paths, has_drawn_params, has_states
from ssmkit.posterior import Posterior
from ssmkit.typing import Key

if TYPE_CHECKING:
    import xarray as xr


def to_arviz(posterior: Posterior, *, num_draws: int = 1000, key: Key | int = 0) -> Any:
    """Export a posterior to ArviZ.

    Every draw in the group ``posterior`` counts the same and holds parameters *and* a path of
    states drawn given these parameters. Parameters fitted as a point are no draws: they are in
    ``fixed_parameters``, and the draws are paths at that point.

    Args:
        posterior: of one series.
        num_draws: number of joint draws. Where parameters were drawn with equal weights, the
            draws that have states are kept in their chains, and there are at most so many.
        key: random key, or an integer seed, for the paths.

    Returns:
        `arviz.InferenceData` (ArviZ 0.2x) or `xarray.DataTree` (ArviZ 1.x).

    Raises:
        EngineError: the posterior is of a batch.
        NotComputed: there are neither states nor parameter draws (``keep="final"``).
        OptionError: ``num_draws`` is below one.

    Example:
        >>> import ssmkit as sk
        >>> model = sk.models.LocalLevel(1469.0, 15099.0)
        >>> posterior = sk.infer(0, sk.Kalman(), model, sk.data.load("nile"))
        >>> data = to_arviz(posterior, num_draws=50)
        >>> data["posterior"]["states"].dims
        ('chain', 'draw', 'time', 'state')
    """
    key = keys.as_key(key)
    _check(posterior, num_draws)
    draws = choose_draws(posterior, num_draws, keys.purpose(key, "draws"))
    paths = draw_paths(key, posterior, draws) if has_states(posterior) else None
    groups = {
        "posterior": posterior_group(posterior, draws, paths),
        "weighted_posterior": weighted_group(posterior),
        "fixed_parameters": fixed_group(posterior),
        "log_likelihood": likelihood_group(posterior, draws),
        "sample_stats": statistics_group(posterior, draws),
    }
    if posterior.data is not None:
        groups["observed_data"] = observed_group(posterior)
        groups["constant_data"] = input_group(posterior)
    attributes = _attributes(posterior)
    groups["posterior"] = groups["posterior"].assign_attrs(attributes)
    return _container({n: g for n, g in groups.items() if g is not None}, attributes)


def _check(posterior: Posterior, num_draws: int) -> None:
    if posterior.is_batch:
        raise EngineError(
            "this posterior is of a batch; ArviZ holds one series.",
            got=f"{posterior.data.ys.shape[0]} series",
            fix="posterior[0].to_arviz()",
        )
    if num_draws < 1:
        raise OptionError("num_draws is too small.", got=num_draws, expected="at least 1")
    if not has_states(posterior) and not has_drawn_params(posterior):
        raise NotComputed(
            "there is nothing to draw: neither states nor parameters have draws.",
            got=repr(posterior.engine),
            fix='run with keep="all"',
        )


def _attributes(posterior: Posterior) -> dict[str, str | float]:
    """What netCDF can hold of the posterior's own record: texts and numbers."""
    import ssmkit

    attributes: dict[str, str | float] = {
        "inference_library": "ssmkit",
        "inference_library_version": ssmkit.__version__,
        "created_at": datetime.now(UTC).isoformat(),
        "engine": repr(posterior.engine),
    }
    value = posterior.parts.get("log_evidence")
    if value is not None and np.ndim(value) == 0:
        attributes["log_evidence"] = float(value)
        attributes["evidence_kind"] = str(posterior.evidence_kind)
        attributes["evidence_of"] = str(posterior.evidence_of)
    return attributes


def _container(groups: dict[str, xr.Dataset], attributes: dict[str, str | float]) -> Any:
    """The one place that knows which ArviZ this is.

    Datasets are handed over ready made: ``from_dict`` of 0.2x drops groups that it does not know
    and misreads the form of 1.x, both without an error.
    """
    import arviz
    import xarray as xr

    if int(arviz.__version__.split(".")[0]) >= 1:
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = dict(attributes)
        return tree
    build: Any = arviz.InferenceData  # typed as if all its keywords were options
    return build(attrs=attributes, **groups)
