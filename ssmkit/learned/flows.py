r"""Normalising flows: distributions with an exact density that can be drawn from in one pass.

A builder is a frozen dataclass with ``build(key, dim, dtype)``; what it builds is a `Flow`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy import stats

from ssmkit.errors import OptionError, ShapeError
from ssmkit.reprs import call_repr
from ssmkit.typing import Array, Float, Key, Scalar

TRANSFORMS = ("affine", "spline")
BASES = ("normal", "student")
LARGEST_SCALE = 10.0  # of one coupling, and its inverse the smallest: training stays stable
LARGEST_NORM = 50.0  # of the scales between couplings
FAR = 100.0  # base standard deviations beyond which a conditioner does not tell points apart
SMALLEST_BIN = 1e-4  # of the range of a spline


class Flow(Protocol):
    r"""What an engine asks of a flow; one of your own, or another library's, inherits nothing.

    Methods are written for one point and are mapped outside. A builder of your own is hashable and
    has ``build(key, dim, dtype)``, which makes the flow: a pytree whose inexact arrays are learned.

    Example:
        >>> import equinox as eqx, jax
        >>> import jax.numpy as jnp
        >>> class Normal(eqx.Module):
        ...     mean: jax.Array
        ...     @property
        ...     def dim(self):
        ...         return self.mean.size
        ...     def log_prob(self, x):
        ...         return jax.scipy.stats.norm.logpdf(x, self.mean).sum()
        ...     def sample_and_log_prob(self, key):
        ...         x = self.mean + jax.random.normal(key, (self.dim,))
        ...         return x, self.log_prob(x)
        >>> Normal(jnp.zeros(3)).log_prob(jnp.zeros(3)).shape
        ()
    """

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        ...

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Scalar]:
        """One draw, and its log density in nats."""
        ...

    def log_prob(self, x: Float[Array, " dim"]) -> Scalar:
        """Log density of a point in nats."""
        ...


class Layers(eqx.Module):
    """Linear layers with GELU between them, and nothing after the last.

    Unlike those of `equinox.nn.MLP`, all leaves are arrays, so that `jax.grad`, `jax.jit` and optax
    take a flow as it is.
    """

    layers: tuple[eqx.nn.Linear, ...]

    def __call__(self, x: Array) -> Array:
        """What the network says."""
        for layer in self.layers[:-1]:
            x = jax.nn.gelu(layer(x))
        return self.layers[-1](x)


def layers(key: Key, sizes: list[int], dtype: Any) -> Layers:
    """A network of so many units in its layers, input and output included."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(itertools.pairwise(sizes), keys, strict=True)
    return Layers(tuple(eqx.nn.Linear(*pair, dtype=dtype, key=key) for pair, key in pairs))


def silenced(network: Layers) -> Layers:
    """The same network with a last layer of zeros: it says nothing before it has learned."""
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)  # noqa: E731 - a path in the tree
    return eqx.tree_at(last, network, replace_fn=jnp.zeros_like)


def bounded(raw: Array, largest: float) -> Array:
    """Logarithm of a scale between ``1 / largest`` and ``largest``; zero, slope one, at zero."""
    return math.log(largest) * jnp.tanh(raw / math.log(largest))


def log_prob_where_finite(log_prob: Callable[[Array], Scalar], x: Array, like: Flow) -> Scalar:
    """The log density of a point, −∞ without a gradient where the point is not finite."""
    x = jnp.asarray(x)
    if x.shape != (like.dim,):
        raise ShapeError(
            "a flow takes one point at a time.",
            got=f"shape {x.shape}",
            expected=f"shape ({like.dim},)",
            fix="jax.vmap(flow.log_prob)(points)",
        )
    finite = jnp.all(jnp.isfinite(x))
    # filled before and not only masked after: the gradient of a masked nan is nan
    return jnp.where(finite, log_prob(jnp.where(finite, x, 0)), -jnp.inf)


def check_sizes(kind: str, sizes: dict[str, int]) -> None:
    """Refuse numbers of layers, units, coordinates and the like below one."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise OptionError(f"{kind}: {name} is no size.", got=repr(size), expected="1, 2, …")


@dataclasses.dataclass(frozen=True, repr=False)
class CouplingFlow:
    r"""A flow of couplings: some coordinates are moved, as a network of the others says.

    \[x = \sigma\, (f_{2L} \circ \dots \circ f_1)(z), \qquad
    f_l(z) = a_l + b_l\, \big(z_A,\; \tau(z_B;\, \mathrm{MLP}_l(z_A))\big), \qquad
    z \sim p_0\]

    with \(\tau\) affine, or a monotone rational-quadratic spline, in each coordinate. Both passes
    give the density, and both cost one evaluation of each network. At its start the flow is the
    base. \(A\) are half of the coordinates, in a row on a circle; from one coupling to the next the
    row moves on by about half of the circle, never twice the same way round, so that all
    coordinates come to see each other. A single coordinate is moved as free numbers say.

    All couplings have one shape, and are run by one scan: what is compiled does not grow with their
    number. Scales are bounded (0.1 to 10 in a coupling, 0.02 to 50 between them), and networks do
    not tell apart what lies beyond 100 standard deviations, so that the tails are those of the
    base.

    Args:
        num_layers: pairs ``L`` of couplings.
        width: units of a hidden layer.
        depth: hidden layers.
        transform: ``"affine"``, fast; or ``"spline"``, for densities of several modes in few
            layers, at about twice the time in two dimensions and four to five times in six.
        num_bins: pieces of a spline.
        bound: splines bend between ``-bound`` and ``bound`` and are straight beyond, in units of
            ``scale``.
        scale: of the base, in units of the points; one number, or a tuple with one for each
            coordinate. Too broad is a better start than too narrow.
        base: ``"normal"``, or ``"student"`` for independent Student-t coordinates, whose
            importance weights stay bounded for targets with heavier tails.
        df: degrees of freedom of the Student-t base.
        act_norm: whether there are the scales ``b`` and shifts ``a`` between couplings.

    Raises:
        OptionError: an option has an impossible value.

    Example:
        >>> import jax
        >>> from ssmkit.learned import CouplingFlow
        >>> flow = CouplingFlow(num_layers=2, scale=3.0).build(jax.random.key(0), 2)
        >>> x, log_prob = flow.sample_and_log_prob(jax.random.key(1))
        >>> bool(abs(log_prob - flow.log_prob(x)) < 1e-4)
        True
        >>> points = jax.random.normal(jax.random.key(2), (5, 2))
        >>> jax.vmap(flow.log_prob)(points).shape
        (5,)

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio (2017), Density estimation using Real NVP;
    C. Durkan, A. Bekasov, I. Murray and G. Papamakarios (2019), Neural spline flows; L. Midgley
    et al. (2023), Flow annealed importance sampling bootstrap, for bounded scales.
    """

    num_layers: int = 8
    width: int = 64
    depth: int = 2
    transform: str = "affine"
    num_bins: int = 8
    bound: float = 10.0
    scale: float | tuple[float, ...] = 1.0
    base: str = "normal"
    df: float = 5.0
    act_norm: bool = True

    __repr__ = call_repr

    def __post_init__(self) -> None:
        """Refuse options that cannot be."""
        sizes = ("num_layers", "width", "depth", "num_bins")
        check_sizes("CouplingFlow", {name: getattr(self, name) for name in sizes})
        for name, known in (("transform", TRANSFORMS), ("base", BASES)):
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"CouplingFlow: unknown {name}.", got=repr(value), expected=known)
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        for name, values in (("bound", (self.bound,)), ("df", (self.df,)), ("scale", scales)):
            if not all(isinstance(v, float | int) and 0 < v < math.inf for v in values):
                raise OptionError(
                    f"CouplingFlow: {name} is impossible.",
                    got=repr(getattr(self, name)),
                    expected="a positive number" + (" or a tuple of them" * (name == "scale")),
                )

    def build(self, key: Key, dim: int, dtype: Any = float) -> Couplings:
        """Make the arrays of a flow over ``dim`` coordinates.

        Raises:
            OptionError: there is no such number of coordinates, or ``scale`` has another.
        """
        check_sizes("CouplingFlow", {"dim": dim})
        if isinstance(self.scale, tuple) and len(self.scale) != dim:
            raise OptionError(
                "CouplingFlow: scale is for another number of coordinates.",
                got=f"{len(self.scale)} scales",
                expected=f"{dim}, or one number for all",
            )
        seen = dim // 2
        numbers = 2 if self.transform == "affine" else 3 * self.num_bins + 1
        sizes = [seen, *[self.width] * self.depth, (dim - seen) * numbers]

        def coupling(key: Key) -> Coupling:
            norm = jnp.zeros((2, dim), dtype) if self.act_norm else None
            return Coupling(silenced(layers(key, sizes, dtype)), norm)

        stacked = jax.vmap(coupling)(jax.random.split(key, 2 * self.num_layers))
        return Couplings(stacked, dim, self)


class Coupling(eqx.Module):
    """One coupling; those of a flow are stacked along the first axis of all leaves.

    Attributes:
        network: the conditioner.
        norm: shift, and what `bounded` makes the log scale, of each coordinate afterwards; or None.
    """

    network: Layers
    norm: Float[Array, "2 dim"] | None


class Couplings(eqx.Module):
    """The flow of `CouplingFlow`."""

    stacked: Coupling
    dim: int = eqx.field(static=True)
    options: CouplingFlow = eqx.field(static=True)

    @property
    def dtype(self) -> Any:
        """Floating type of points and densities."""
        return self.stacked.network.layers[-1].weight.dtype

    @property
    def stride(self) -> int:
        """Coordinates from the start of one conditioning row to that of the next."""
        half = self.dim // 2
        # has no common divisor with the number of coordinates, so that every row comes up
        return half if self.dim % 2 else half + 1 + half % 2

    @property
    def log_scale(self) -> Float[Array, " dim"]:
        """Of the base, for each coordinate."""
        return jnp.log(jnp.broadcast_to(jnp.asarray(self.options.scale, self.dtype), (self.dim,)))

    def bijector(self, coupling: Coupling) -> Any:
        """The distrax bijector of one coupling, for the function that is traced and no other."""
        import distrax  # brings in tensorflow-probability

        def moving(told: Array) -> Any:
            told = told.reshape(self.dim - self.dim // 2, -1)
            if self.options.transform == "affine":
                log_scale = bounded(told[:, 1], LARGEST_SCALE)
                return distrax.ScalarAffine(told[:, 0], log_scale=log_scale)
            bound = self.options.bound
            least = SMALLEST_BIN * 2 * bound
            return distrax.RationalQuadraticSpline(told, -bound, bound, min_bin_size=least)

        def told_by(seen: Any) -> Array:
            return coupling.network(jnp.clip(seen, -FAR, FAR))

        moved = distrax.SplitCoupling(self.dim // 2, 1, told_by, moving)
        if coupling.norm is None:
            return moved
        shift, raw = coupling.norm
        norm = distrax.ScalarAffine(shift, log_scale=bounded(raw, LARGEST_NORM))
        return distrax.Chain([distrax.Block(norm, 1), moved])

    def forward(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """The point that belongs to a point of the base, and the log determinant of the map."""

        def step(carry: tuple[Array, Array], coupling: Coupling) -> tuple[Any, None]:
            x, total = carry
            x, log_det = self.bijector(coupling).forward_and_log_det(x)
            return (jnp.roll(x, -self.stride), total + log_det), None

        start = (jnp.asarray(z, self.dtype), jnp.sum(self.log_scale))
        (x, total), _ = jax.lax.scan(step, start, self.stacked)
        return jnp.roll(x, self._turned) * jnp.exp(self.log_scale), total

    def inverse(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """The point of the base that belongs to a point, and the log determinant of this map."""

        def step(carry: tuple[Array, Array], coupling: Coupling) -> tuple[Any, None]:
            z, total = carry
            z = jnp.roll(z, self.stride)
            z, log_det = self.bijector(coupling).inverse_and_log_det(z)
            return (z, total + log_det), None

        x = jnp.asarray(x, self.dtype) * jnp.exp(-self.log_scale)
        start = (jnp.roll(x, -self._turned), -jnp.sum(self.log_scale))
        (z, total), _ = jax.lax.scan(step, start, self.stacked, reverse=True)
        return z, total

    @property
    def _turned(self) -> int:
        return 2 * self.options.num_layers * self.stride

    def _log_base(self, z: Array) -> Scalar:
        if self.options.base == "normal":
            return jnp.sum(stats.norm.logpdf(z))
        return jnp.sum(stats.t.logpdf(z, self.options.df))

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Scalar]:
        """One draw, and its log density in nats, by one pass forward."""
        if self.options.base == "normal":
            z = jax.random.normal(key, (self.dim,), self.dtype)
        else:
            z = jax.random.t(key, self.options.df, (self.dim,), self.dtype)
        x, log_det = self.forward(z)
        return x, self._log_base(z) - log_det

    def log_prob(self, x: Float[Array, " dim"]) -> Scalar:
        """Log density of a point in nats; −∞ where it is not finite.

        Raises:
            ShapeError: it is no single point.
        """

        def finite(x: Array) -> Scalar:
            z, log_det = self.inverse(x)
            return self._log_base(z) + log_det

        return log_prob_where_finite(finite, x, self)
