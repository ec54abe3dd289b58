"""Do chains agree: R-hat and effective sample sizes over all parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ssmkit.typing import PyTree


def convergence(draws: dict[str, PyTree]) -> dict[str, Any]:
    """The worst split R-hat and the smallest effective sample size.

    A chain that never moved has no R-hat; it counts as infinite, and its draws as none.

    Args:
        draws: name to arrays ``(chains, draws, *shape)``.
    """
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    rhat, ess = 1.0, float("inf")
    for values in jax.tree.leaves(draws):
        array = np.asarray(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = np.nan_to_num(split_gelman_rubin(array), nan=np.inf, posinf=np.inf)
            least = np.nan_to_num(effective_sample_size(array), nan=0.0)
        rhat, ess = max(rhat, float(np.max(worst))), min(ess, float(np.min(least)))
    return {"max_rhat": rhat, "min_ess": ess}
