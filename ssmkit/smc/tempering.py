"""Tempering: draws from an unnormalised density, and its normalising constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.errors import OptionError
from ssmkit.smc import feynman_kac
from ssmkit.smc.annealing import Rung, annealed
from ssmkit.smc.feynman_kac import Cloud, Recipe, Select
from ssmkit.smc.kernels import Kernel, hamiltonian
from ssmkit.smc.ladder import Ladder, climb
from ssmkit.smc.lineage import log_evidence_se
from ssmkit.smc.resampling import Criterion, selector, systematic
from ssmkit.typing import Array, Float, Int, Key, PyTree, Scalar

LogDensity = Callable[[PyTree], Scalar]


class Tempered(eqx.Module):
    """The end of a tempered run.

    Attributes:
        particles: draws from the end, a pytree with ``N`` in front.
        riders: what rode along with them.
        log_weights: ``(N,)``, scaled to mean one.
        log_evidence: log of the ratio of the two normalising constants, end over start, in nats.
        log_evidence_se: its standard error by lineages; nan where too few are left.
        temperatures: ``(K + 1,)``, from 0 to 1; an adapted schedule has ones behind its end.
        step_sizes: of the moves at each temperature, ``(K + 1, ...)``; the first is not used.
        acceptance_rates: of these moves ``(K + 1,)``; nan where there were none.
        ess: effective number of particles at each temperature ``(K + 1,)``, nan behind the end.
        num_steps: number of temperatures after the first.
        kind: ``"unbiased"`` evidence for a fixed schedule; ``"consistent"`` only for one that was
            adapted to the same particles.
    """

    particles: PyTree
    riders: PyTree
    log_weights: Float[Array, " N"]
    log_evidence: Scalar
    log_evidence_se: Scalar
    temperatures: Float[Array, " K"]
    step_sizes: Array
    acceptance_rates: Float[Array, " K"]
    ess: Float[Array, " K"]
    num_steps: Int[Array, ""]
    kind: str = eqx.field(static=True)


def temper(
    key: Key,
    sample: Callable[[Key], PyTree],
    log_start: LogDensity,
    log_end: LogDensity,
    *,
    num_particles: int = 1000,
    temperatures: Float[Array, " K"] | None = None,
    kernel: Kernel | None = None,
    step_size: float | Array = 0.5,
    num_moves: int = 1,
    threshold: float | Criterion = 0.5,
    rider: Callable[[PyTree], PyTree] | None = None,
    target_ess: float = 0.8,
    max_steps: int = 100,
) -> Tempered:
    r"""Draw from an unnormalised density, and estimate its normalising constant.

    \[\hat Z = \prod_t \frac{\sum_i w_{t-1}^i e^{(\lambda_t - \lambda_{t-1})
    (b - a)(x_{t-1}^i)}}{\sum_i w_{t-1}^i}\]

    With given ``temperatures`` and step sizes \(\mathrm{E}\hat Z = Z_b / Z_a\) exactly. With
    ``temperatures=None`` each temperature is the one that leaves a share ``target_ess`` of the
    effective particles, and step sizes follow the acceptance rate: the evidence is then consistent
    only. A second run with the ``temperatures`` and ``step_sizes`` of the first is unbiased again.
    Pure: safe under ``jit`` and ``vmap``.

    Args:
        key: random key.
        sample: ``key -> x``, a draw from the start; ``x`` is any pytree of floating arrays.
        log_start: ``x -> scalar``, log density of the start in nats.
        log_end: ``x -> scalar``, log density of the end, which need not be normalised. A likelihood
            is tempered with the prior as the start and prior times likelihood as the end.
        num_particles: ``N``.
        temperatures: ``(K + 1,)`` ascending from 0 to 1; None to adapt.
        kernel: ``hamiltonian()`` by default, or ``random_walk()``.
        step_size: of the kernel; with given temperatures also ``(K + 1, ...)``, one for each.
        num_moves: steps of the kernel at each temperature.
        threshold: resample when the effective number of particles is at most this share of ``N``,
            or a criterion of the normalised weights.
        rider: ``x -> pytree``, made at the start, rides along with the particle unmoved.
        target_ess: share of the effective particles that an adapted step keeps.
        max_steps: temperatures that adapting takes at most; the last jumps to the end.

    Returns:
        `Tempered` particles with their weights and the log evidence.

    Raises:
        OptionError: options of impossible values.

    Example:
        >>> import jax, jax.numpy as jnp, ssmkit as sk
        >>> def log_start(x): return jax.scipy.stats.norm.logpdf(x)
        >>> def log_end(x): return -0.5 * ((x - 3.0) / 0.5) ** 2
        >>> run = sk.smc.temper(
        ...     jax.random.key(0), jax.random.normal, log_start, log_end,
        ...     num_particles=2000, temperatures=jnp.linspace(0.0, 1.0, 11))
        >>> run.kind, bool(abs(run.log_evidence - jnp.log(0.5 * jnp.sqrt(2 * jnp.pi))) < 0.2)
        ('unbiased', True)

    Source: P. Del Moral, A. Doucet and A. Jasra (2006); A. Jasra, D. Stephens, A. Doucet and
    T. Tsagaris (2011) for the adapted temperatures; Y. Zhou, A. Johansen and J. Aston (2016) for
    the conditional effective number that they keep.
    """
    _check(num_particles, num_moves, target_ess, max_steps)
    kernel = hamiltonian() if kernel is None else kernel
    recipe = annealed(
        sample, lambda x: (log_start(x), log_end(x)), kernel, num_moves=num_moves, rider=rider
    )
    select = selector(systematic, threshold)
    if temperatures is not None:
        return _fixed(recipe, select, key, num_particles, jnp.asarray(temperatures), step_size)
    ladder = Ladder(recipe, select, key, kernel.acceptance, target_ess, max_steps)
    end = climb(ladder, num_particles, jnp.asarray(step_size))
    return _result(end.cloud, end.rungs, end.rates, end.ess, end.t, "consistent")


def _check(num_particles: int, num_moves: int, target_ess: float, max_steps: int) -> None:
    least = {"num_particles": (num_particles, 2), "num_moves": (num_moves, 1)}
    for name, (value, low) in (least | {"max_steps": (max_steps, 1)}).items():
        if value < low:
            raise OptionError(f"sk.smc.temper: {name} is too small.", got=value, expected=low)
    if not 0 < target_ess < 1:
        raise OptionError(
            "sk.smc.temper: target_ess is a share.", got=target_ess, expected="between 0 and 1"
        )


def _fixed(
    recipe: Recipe,
    select: Select,
    key: Key,
    num_particles: int,
    temperatures: Array,
    step_size: float | Array,
) -> Tempered:
    count = temperatures.shape[0]
    sizes = jnp.asarray(step_size, temperatures.dtype)
    sizes = sizes if sizes.ndim else jnp.broadcast_to(sizes, (count,))
    increments = jnp.diff(temperatures, prepend=temperatures[:1])
    rungs = Rung(temperatures, increments, sizes)

    def rung(t: Int[Array, ""]) -> Rung:
        return jax.tree.map(lambda a: a[t], rungs)

    first_key = jax.random.fold_in(key, 0)
    begin = feynman_kac.first(recipe, first_key, num_particles, rung(jnp.asarray(0)))
    steps: Any
    cloud, steps = feynman_kac.scan(recipe, select, key, begin, rung, count, keep=True)
    rates = jnp.mean(steps.states, axis=1).at[0].set(jnp.nan)
    return _result(cloud, rungs, rates, steps.ess, jnp.asarray(count - 1), "unbiased")


def _result(
    cloud: Cloud, rungs: Rung, rates: Array, ess: Array, num_steps: Array, kind: str
) -> Tempered:
    walkers = cloud.particles
    return Tempered(
        walkers.place.x,
        walkers.rider,
        cloud.log_weights,
        cloud.log_evidence,
        log_evidence_se(cloud.lineage, cloud.log_weights, is_multinomial=False),
        rungs.temperature,
        rungs.step_size,
        rates,
        ess,
        num_steps,
        kind,
    )
