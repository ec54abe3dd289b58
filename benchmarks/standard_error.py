"""Is the standard error by lineage right? Its square against the variance over replicates.

A study and no timing: a ratio of one is calibrated. With long series few first ancestors survive,
and the share of runs that give a standard error at all falls.
"""

import jax
import jax.numpy as jnp
import numpy as np

import ssmkit as sk
from ssmkit.models.base import as_arrays

HEADER = ["scheme", "threshold", "T", "N", "estimated / true variance", "inside 95 %", "answered"]
MODEL = sk.models.StochasticVolatility(-1.0, 0.9, 0.4)
SCHEMES = (("multinomial", 1.0), ("multinomial", 0.5), ("systematic", 0.5), ("systematic", 1.0))
SIZES = ((10, 500), (25, 500), (50, 2000))
REPLICATES = 2000


def study(scheme: str, threshold: float, length: int, count: int, replicates: int) -> list[str]:
    """One row of the table."""
    model = as_arrays(MODEL)
    ys = sk.simulate(0, MODEL, length).observations
    engine = sk.SMC(count, resampling=scheme, threshold=threshold, smoother=None)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = engine.infer(key, model, ys, None, None, "final")
        return parts["log_evidence"], parts["log_evidence_se"]

    keys = jax.random.split(jax.random.key(1), (replicates // 20, 20))
    values, errors = map(np.ravel, jax.jit(lambda k: jax.lax.map(jax.vmap(one), k))(keys))
    # the mean of an unbiased estimate is the evidence itself
    log_mean = float(jax.nn.logsumexp(jnp.asarray(values)) - np.log(values.size))
    relative = np.exp(values - log_mean)
    answered = np.isfinite(errors)
    ratio = np.mean(errors[answered] ** 2) / relative.var(ddof=1)
    inside = np.mean(np.abs(values - log_mean)[answered] < 1.96 * errors[answered])
    cells = f"{ratio:.2f}", f"{100 * inside:.0f} %", f"{100 * answered.mean():.0f} %"
    return [scheme, f"{threshold:g}", str(length), str(count), *cells]


def rows(replicates: int = REPLICATES) -> list[list[str]]:
    """The table."""
    return [study(*scheme, *size, replicates) for scheme in SCHEMES for size in SIZES]


if __name__ == "__main__":
    from timing import markdown

    jax.config.update("jax_enable_x64", True)
    print(markdown(HEADER, rows()))
