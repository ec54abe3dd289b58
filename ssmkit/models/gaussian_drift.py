r"""Gaussian drift diffusion: a walk with drift, seen once, after its end.

\[x_0 \sim N(a, s^2), \qquad x_t \sim N(x_{t-1} + a, s^2), \qquad y_t \sim N(x_t + a, s^2)\]

Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO: smoothing inference
with twisted objectives, Advances in Neural Information Processing Systems 35.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import Number, require_positive, require_scalars
from ssmkit.models.laws import normal
from ssmkit.typing import Array, PyTree


class GaussianDrift(StateSpaceModel):
    r"""A walk with drift, made to be seen at its last step only; all answers are known.

    \(x_0 \sim N(a, s^2)\), \(x_t \sim N(x_{t-1} + a, s^2)\), \(y_t \sim N(x_t + a, s^2)\)

    With ``nan`` for all observations but the last of ``T``,
    \(y_{T-1} \sim N((T + 1) a, (T + 1) s^2)\), and with \(n = T - t\) steps to go (the emission
    is one of them) \(p(y_{T-1} \mid x_t) = N(x_t + n a, n s^2)\) and
    \(p(x_t \mid x_{t-1}, y_{T-1}) =
    N\!\left(\frac{n x_{t-1} + y_{T-1}}{n + 1}, \frac{n s^2}{n + 1}\right)\), with
    \(x_{-1} = 0\). A filter that does not look ahead learns of the observation too late.

    Args:
        drift: \(a\), a step, scalar.
        scale: \(s\), standard deviation of the steps and of the noise, scalar.

    Raises:
        ParameterError: a scale that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, ssmkit as sk
        >>> ys = jnp.full(10, jnp.nan).at[-1].set(11.0)
        >>> model, key = sk.models.GaussianDrift(drift=1.0), jax.random.key(0)
        >>> round(float(sk.log_evidence(key, sk.ExtendedKalman(), model, ys)), 4)
        -2.1179

    Source: D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), NeurIPS 35.
    """

    drift: Number
    scale: Number = 1.0

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        require_scalars(self, drift=self.drift)
        require_positive(self, scale=self.scale)

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first place: one step away from zero."""
        return normal(jnp.asarray(self.drift), self.scale)

    def transition(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the next place."""
        return normal(x + self.drift, self.scale)

    def emission(self, x: Array, u: PyTree) -> dist.Distribution:
        """Return the law of the observation: one more step away."""
        return normal(x + self.drift, self.scale)
