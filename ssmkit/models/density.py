"""A plain unnormalised density, as a target beside models and programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmkit.errors import ModelError, OptionError
from ssmkit.typing import Array, Float, PyTree, Scalar


class Density(eqx.Module):
    r"""An unnormalised log density over \(\mathbb R^d\), to be drawn from by `FAB`.

    Args:
        log_prob: ``log_prob(x, *data) -> scalar`` in nats, for one ``x`` of shape ``(dim,)``;
            differentiable, and −inf where there is nothing.
        dim: ``d``.
        data: arrays that the function needs, which are traced and never frozen into compiled code.

    Raises:
        OptionError: ``dim`` is no positive integer, or ``log_prob`` no function.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> def log_prob(x, centre): return -0.5 * jnp.sum((x - centre) ** 2)
        >>> sk.Density(log_prob, 2, jnp.ones(2))
        Density(log_prob, dim=2, …)
    """

    log_prob: Callable = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    data: tuple[PyTree, ...]

    def __init__(self, log_prob: Callable, dim: int, *data: PyTree) -> None:
        if not callable(log_prob):
            raise OptionError("a density is a function.", got=type(log_prob).__name__)
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise OptionError(
                "dim counts the coordinates of x.", got=repr(dim), expected="an integer ≥ 1"
            )
        self.log_prob, self.dim, self.data = log_prob, dim, data

    def __call__(self, x: Float[Array, " d"]) -> Scalar:
        """Log density in nats."""
        return self.log_prob(x, *self.data)

    def check(self) -> None:
        """Call the function on an abstract ``x``.

        Raises:
            ModelError: it fails, or does not return one real number.
        """
        name = getattr(self.log_prob, "__name__", "log_prob")
        x = jax.ShapeDtypeStruct((self.dim,), jnp.result_type(float))
        try:
            value: Any = jax.eval_shape(lambda x: jnp.asarray(self(x)), x)
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else ""
            raise ModelError(
                f"the density {name} failed on a vector of {self.dim} coordinates.",
                got=f"{type(error).__name__}: {told}",
                expected=f"a function of one x of shape ({self.dim},)",
                fix="check dim=, and that the function is written for one x",
            ) from error
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ModelError(
                f"the density {name} must return one real number.",
                got=f"{value.dtype} of shape {value.shape}",
                expected="a floating scalar, the log density in nats",
                fix="jnp.sum(...) over the coordinates; the library goes over draws itself",
            )

    def __repr__(self) -> str:
        """Name the function."""
        name = getattr(self.log_prob, "__name__", repr(self.log_prob))
        return f"Density({name}, dim={self.dim}{', …' if self.data else ''})"
