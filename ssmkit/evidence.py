"""The pure log evidence: no host check, safe under ``jit``, ``grad`` and ``vmap``."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ssmkit.errors import EngineError
from ssmkit.models.base import StateSpaceModel, as_arrays
from ssmkit.models.observation import needed_mask
from ssmkit.typing import Array, Inputs, Key, Scalar


def log_evidence(
    key: Key,
    engine: Any,
    model: StateSpaceModel,
    ys: Array,
    us: Inputs = None,
    observed: Array | None = None,
) -> Scalar:
    r"""Log evidence \(\log p(y_{0:T-1})\) of a model, in nats, by an engine.

    Pure: nothing is checked on the host, so that it can stand inside ``jit``, ``grad`` (with
    respect to the model) and ``vmap`` (over models, series or keys). Impossible data give −inf.

    Args:
        key: a typed random key; engines that draw nothing ignore it.
        engine: a state engine, such as ``sk.Kalman()``.
        model: the model; its array fields are differentiable.
        ys: one series ``(T, *observation)``; nan is missing.
        us: inputs with leading axis ``T``, or None.
        observed: booleans ``(T,)`` or ``(T, M)``, or None.

    Returns:
        A scalar.

    Raises:
        EngineError: the engine has no evidence of its own.

    Example:
        >>> import jax, jax.numpy as jnp, ssmkit as sk
        >>> ys = jnp.array([0.1, -0.3, jnp.nan, 0.2])
        >>> def loss(scale):
        ...     model = sk.models.LocalLevel(scale, 1.0)
        ...     return sk.log_evidence(jax.random.key(0), sk.Kalman(), model, ys)
        >>> jax.vmap(jax.grad(loss))(jnp.array([0.1, 1.0])).shape
        (2,)
    """
    if not hasattr(engine, "evidence_kind"):
        raise EngineError(
            f"{engine!r} has no evidence of its own.",
            expected="a state engine",
            fix="sk.Kalman(), sk.ExtendedKalman(), sk.UnscentedKalman() or sk.ForwardBackward()",
        )
    ys = jnp.asarray(ys)
    value = engine.log_evidence(key, as_arrays(model), ys, us, needed_mask(ys, observed))
    return jnp.where(jnp.isnan(value), -jnp.inf, value)
