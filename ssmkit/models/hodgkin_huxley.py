r"""The Hodgkin–Huxley neuron with noise, by Euler steps; its voltage is seen now and then.

\[\dot v = I - g_{Na} m^3 h (v - E_{Na}) - g_K n^4 (v - E_K) - g_L (v - E_L), \qquad
\dot g = \alpha_g(v) (1 - g) - \beta_g(v)\, g, \quad g \in \{n, m, h\}\]

Sources: A. L. Hodgkin and A. F. Huxley (1952), A quantitative description of membrane current and
its application to conduction and excitation in nerve, Journal of Physiology 117; constants of
D. Lawson, A. Raventós, A. Warrington and S. Linderman (2022), SIXO: smoothing inference with
twisted objectives, Advances in Neural Information Processing Systems 35.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logit

from ssmkit.models.base import StateSpaceModel
from ssmkit.models.checks import (
    Number,
    float_type,
    require_at_least_zero,
    require_positive,
    require_scalars,
)
from ssmkit.models.laws import normal
from ssmkit.typing import Array, Float, PyTree, Scalar

UNIT = 10.0  # mV: one unit of the state and of the observation
REST = -65.0  # mV, around which the start lies
INITIAL_SCALE = (2.5, 1.0, 1.0, 1.0)
MARGIN = 1e-5  # how near a gate may come to closed or open


class HodgkinHuxley(StateSpaceModel):
    r"""A spiking neuron driven by a constant current; most of its observations are missing.

    With \(\dot v\) and \(\dot g\) as in Hodgkin and Huxley and capacitance one, a step is
    \(v \leftarrow v + \Delta \dot v\), \(g \leftarrow g + \Delta \dot g\), and then noise
    \(N(0, s_v^2 \Delta)\) on \(v\) and \(N(0, s_g^2 \Delta)\) on the logit of each gate;
    \(y_t \sim N(v_t, r^2)\). State \((v / 10, \mathrm{logit}\, n, \mathrm{logit}\, m,
    \mathrm{logit}\, h)\) and observation \(y / 10\): voltages are in units of 10 mV. The start is
    \(v / 10 \sim N(-6.5, 2.5^2)\), and each logit is normal with standard deviation one around its
    value in equilibrium at −65 mV.

    A step is short beside the time between measurements: mark the steps without one by ``nan``.

    Args:
        current: \(I\), in µA/cm², scalar; what is learned in the source, where it is 13.
        sodium_conductance: \(g_{Na}\), in mS/cm², scalar.
        potassium_conductance: \(g_K\), in mS/cm², scalar.
        leak_conductance: \(g_L\), in mS/cm², scalar.
        sodium_reversal: \(E_{Na}\), in mV, scalar.
        potassium_reversal: \(E_K\), in mV, scalar.
        leak_reversal: \(E_L\), in mV, scalar.
        time_step: \(\Delta\), in ms, scalar.
        voltage_scale: \(s_v\), in mV/√ms, scalar.
        gate_scale: \(s_g\), in 1/√ms, scalar.
        emission_scale: \(r\), in mV, scalar.

    Raises:
        ParameterError: a negative conductance, or a time step or scale that is not positive.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> model = sk.models.HodgkinHuxley(current=13.0)
        >>> ys = sk.simulate(0, model, 2001).observations          # 40 ms
        >>> measured = jnp.arange(2001) % 50 == 0                  # one a ms
        >>> ys = jnp.where(measured, ys, jnp.nan)
        >>> int(jnp.isfinite(ys).sum())
        41

    Source: A. L. Hodgkin and A. F. Huxley (1952), Journal of Physiology 117; constants of the
    released code of D. Lawson et al. (2022), NeurIPS 35, which are not all the textbook's: there
    \(g_K\) is 36, and \(\alpha_h\) is centred at −65 mV and not at −50 mV.
    """

    current: Number
    sodium_conductance: Number = 120.0
    potassium_conductance: Number = 20.0
    leak_conductance: Number = 0.3
    sodium_reversal: Number = 50.0
    potassium_reversal: Number = -80.0
    leak_reversal: Number = -55.4
    time_step: Number = 0.02
    voltage_scale: Number = 3.0
    gate_scale: Number = 0.1
    emission_scale: Number = 5.0

    def __check_init__(self) -> None:
        """Check the values where they are known."""
        reversals = ("sodium_reversal", "potassium_reversal", "leak_reversal")
        conductances = ("sodium_conductance", "potassium_conductance", "leak_conductance")
        widths = ("time_step", "voltage_scale", "gate_scale", "emission_scale")
        require_scalars(self, **{name: getattr(self, name) for name in ("current", *reversals)})
        require_at_least_zero(self, **{name: getattr(self, name) for name in conductances})
        require_positive(self, **{name: getattr(self, name) for name in widths})

    def flow(self, x: Float[Array, " 4"]) -> Float[Array, " 4"]:
        """Return the state one Euler step later, without noise."""
        voltage, gates = x[0] * UNIT, jax.nn.sigmoid(x[1:])
        n, m, h = gates
        sodium = self.sodium_conductance * m**3 * h * (voltage - self.sodium_reversal)
        potassium = self.potassium_conductance * n**4 * (voltage - self.potassium_reversal)
        leak = self.leak_conductance * (voltage - self.leak_reversal)
        opening, closing = rates(voltage)
        # at the limits of the gates a step of this length may leave [0, 1]
        moved = gates + self.time_step * (opening * (1 - gates) - closing * gates)
        moved = logit(jnp.clip(moved, MARGIN, 1 - MARGIN))
        change = self.time_step * (self.current - sodium - potassium - leak)
        return jnp.concatenate([jnp.reshape(voltage + change, 1) / UNIT, moved])

    def initial(self, u: PyTree) -> dist.Distribution:
        """Return the law of the first state: about rest, with gates about equilibrium."""
        rest = jnp.asarray(REST, float_type(self.current))
        opening, closing = rates(rest)
        # opening / (opening + closing) are the gates in equilibrium
        mean = jnp.concatenate([rest[None] / UNIT, jnp.log(opening / closing)])
        return normal(mean, jnp.asarray(INITIAL_SCALE, mean.dtype))

    def transition(self, x: Float[Array, " 4"], u: PyTree) -> dist.Distribution:
        """Return the law one ``time_step`` ahead."""
        gate = jnp.asarray(self.gate_scale)
        scales = jnp.stack([self.voltage_scale / UNIT, gate, gate, gate])
        return normal(self.flow(x), scales * jnp.sqrt(jnp.asarray(self.time_step)))

    def emission(self, x: Float[Array, " 4"], u: PyTree) -> dist.Distribution:
        """Return the law of the measured voltage, in units of 10 mV."""
        return normal(x[0], self.emission_scale / UNIT)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("voltage", "logit_n", "logit_m", "logit_h")


def rates(voltage: Scalar) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
    r"""Rates \(\alpha\) and \(\beta\) at which the gates n, m and h open and close, in 1/ms.

    Args:
        voltage: in mV, scalar.
    """
    # no cell comes here, but a wild proposal may, and the exponentials must not overflow
    v = jnp.clip(voltage, -500.0, 500.0)
    open_n = 0.1 * over_exponential((v + 55) / 10)
    open_m = over_exponential((v + 35) / 10)
    open_h = 0.07 * jnp.exp(-(v + 50) / 20)
    close_n = 0.125 * jnp.exp(-(v + 65) / 80)
    close_m = 4 * jnp.exp(-(v + 65) / 18)
    close_h = jax.nn.sigmoid((v + 35) / 10)
    return jnp.stack([open_n, open_m, open_h]), jnp.stack([close_n, close_m, close_h])


def over_exponential(z: Array) -> Array:
    r"""\(z / (1 - e^{-z})\) with its limit one at zero; smooth there, derivatives included."""
    near = jnp.abs(z) < 0.01
    series = 1 + z / 2 + z**2 / 12 - z**4 / 720  # the next term is below 1e-16 here
    # both branches of a `where` are differentiated: the one not taken must be finite too
    away = jnp.where(near, 1.0, z)
    return jnp.where(near, series, away / -jnp.expm1(-away))
