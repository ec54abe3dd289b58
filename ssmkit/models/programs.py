"""Programs: numpyro functions that declare or sample parameters and return a model.

``numpyro.param`` sites are learned as points and have no prior; ``numpyro.sample`` sites have one.
A model is built by substituting *all* sites, without a seed: a misspelt or missing site is a named
error and never a draw from its prior.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers

from ssmkit.errors import ModelError, ParameterError
from ssmkit.models.base import StateSpaceModel, as_arrays
from ssmkit.typing import Key, Law, PyTree, Scalar


class Program(eqx.Module):
    """A numpyro function with the arrays it needs; calling it runs the function.

    Attributes:
        fn: the function; it returns a model.
        data: positional arguments for ``fn``, traced and never frozen into compiled code.
    """

    fn: Callable = eqx.field(static=True)
    data: tuple[PyTree, ...] = ()

    def __call__(self) -> StateSpaceModel:
        """Run the function on its data."""
        return self.fn(*self.data)

    def model_at(self, values: Mapping[str, PyTree]) -> StateSpaceModel:
        """The model at given values of the sites; differentiable in them.

        Args:
            values: value by site, each on its own scale.

        Raises:
            ParameterError: a site is missing or misspelt.

        Example:
            >>> import numpyro, ssmkit as sk
            >>> def level(): return sk.models.LocalLevel(numpyro.param("size", 1.0), 2.0)
            >>> float(sk.program(level).model_at({"size": 3.0}).level_variance)
            3.0
        """
        return build(self, values)

    def pull_back(self, values: Mapping[str, PyTree], derivatives: PyTree) -> dict[str, PyTree]:
        """Derivatives in the sites, from derivatives in the model's arrays: the chain rule.

        Args:
            values: value by site, each on its own scale.
            derivatives: of a scalar in the arrays of the model at these values, as ``sk.Score()``
                gives them: a model with its derivatives in their place, None where there is none.

        Raises:
            ParameterError: a site is missing or misspelt.

        Example:
            >>> import jax, numpyro, ssmkit as sk
            >>> def level(): return sk.models.LocalLevel(numpyro.param("size", 1.0) ** 2, 2.0)
            >>> program, values = sk.program(level), {"size": 3.0}
            >>> slopes = jax.grad(lambda model: model.level_variance)(program.model_at(values))
            >>> float(program.pull_back(values, slopes)["size"])
            6.0
        """

        def value(values: Mapping[str, PyTree]) -> Scalar:
            arrays = eqx.filter(build(self, values), eqx.is_inexact_array)
            pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(derivatives), strict=True)
            return sum((jnp.vdot(a, b) for a, b in pairs), jnp.zeros(()))

        return jax.grad(value)(as_arrays(dict(values)))

    def __repr__(self) -> str:
        """Name the function."""
        name = getattr(self.fn, "__name__", repr(self.fn))
        return f"program({name}{', …' if self.data else ''})"


def program(fn: Callable, *data: PyTree) -> Program:
    """Bind the arrays that a program needs, so that they are traced and not frozen at first use.

    Args:
        fn: a numpyro function that returns a model; ``fn(*data)``.
        data: pytrees of arrays.

    Returns:
        A `Program` that every verb accepts.

    Raises:
        ParameterError: ``fn`` is no function of ``data``.

    Example:
        >>> import jax.numpy as jnp, numpyro, ssmkit as sk
        >>> def level(scale):
        ...     size = numpyro.param("size", 1.0)
        ...     return sk.models.LocalLevel(size * scale, scale)
        >>> sk.program(level, jnp.array(2.0))
        program(level, …)
    """
    if not callable(fn):
        raise ParameterError("a program is a function.", got=type(fn).__name__)
    try:
        inspect.signature(fn).bind(*data)
    except TypeError as error:
        raise ParameterError(
            f"the program cannot be called with the data given: {error}.",
            got=f"{len(data)} data arguments",
            expected=f"{getattr(fn, '__name__', 'fn')}{inspect.signature(fn)}",
            fix="sk.program(fn, array, ...) with one argument per parameter of fn",
        ) from error
    return Program(fn, data)


class Site(NamedTuple):
    """One free site of a program: ``kind`` is ``param`` or ``sample``."""

    kind: str
    value: PyTree
    support: Any
    law: Law | None

    @property
    def is_network(self) -> bool:
        """Whether the value is a pytree and not one array."""
        return not eqx.is_array(self.value)


def free_sites(target: Program, key: Key | None = None) -> dict[str, Site]:
    """Run a program once and list the sites that are to be learned.

    Args:
        target: the program.
        key: random key for initial draws of ``sample`` sites; a fixed one when None.

    Raises:
        ModelError: the program returns something that is not a model.
    """
    key = jax.random.key(0) if key is None else key
    startable = handlers.substitute(target, substitute_fn=_improper_start)
    seeded = handlers.trace(handlers.seed(startable, key))
    with handlers.block():
        model = seeded()
    if not isinstance(model, StateSpaceModel):
        raise ModelError(
            "a program must return a model.",
            got=type(model).__name__,
            expected="an instance of sk.StateSpaceModel",
            fix="end the program with `return sk.models.LocalLevel(...)` or a model of your own",
        )
    sites = {}
    for name, message in seeded.trace.items():
        if message["type"] == "param":
            support = message["kwargs"].get("constraint", dist.constraints.real)
            sites[name] = Site("param", _as_array(message["value"]), support, None)
        elif _is_free(message):
            law = message["fn"]
            sites[name] = Site("sample", jnp.asarray(message["value"]), law.support, law)
    return sites


def _improper_start(message: dict[str, Any]) -> Any:
    """A value inside the support of a law that cannot be drawn from."""
    law = message["fn"]
    if message["type"] != "sample" or not isinstance(law, dist.ImproperUniform):
        return None
    bijection = dist.biject_to(law.support)
    return bijection(jnp.zeros(bijection.inverse_shape(law.shape())))


def _as_array(value: PyTree) -> PyTree:
    if isinstance(value, int | float):
        return jnp.asarray(value, dtype=float)
    return value


def build(target: Program, values: Mapping[str, PyTree]) -> StateSpaceModel:
    """Build the model at given parameter values.

    Raises:
        ParameterError: a site is missing or misspelt.
    """
    return as_arrays(build_with_prior(target, values)[0])


def build_many(target: Program, values: Mapping[str, PyTree]) -> StateSpaceModel:
    """Build the models at many parameter values, stacked along a leading axis ``K``."""
    return eqx.filter_vmap(lambda one: as_arrays(build(target, one)))(dict(values))


def build_with_prior(
    target: Program, values: Mapping[str, PyTree]
) -> tuple[StateSpaceModel, Scalar]:
    r"""Build the model and score the parameters, \(\log p(\theta)\) in nats (no Jacobian).

    ``param`` sites have no prior and add nothing; ``numpyro.factor`` counts.

    Raises:
        ParameterError: a site is missing or misspelt.
    """
    tracer = handlers.trace(_Strict(target, dict(values)))
    model: Any = tracer()
    log_prior = jnp.zeros(())
    for message in tracer.trace.values():
        if message["type"] == "sample":
            term = message["fn"].log_prob(message["value"])
            scale = message.get("scale")
            log_prior = log_prior + jnp.sum(term if scale is None else scale * term)
    unknown = sorted(set(values) - set(tracer.trace))
    if unknown:
        raise ParameterError(
            f"the program has no site named {', '.join(map(repr, unknown))}.",
            got=f"values for {sorted(values)}",
            expected=f"values for {sorted(n for n, m in tracer.trace.items() if _is_free(m))}",
            fix="check the spelling",
        )
    return model, log_prior


def _is_free(message: Mapping[str, Any]) -> bool:
    if message["type"] == "sample":
        return not message["is_observed"]
    return message["type"] == "param"


class _Strict(handlers.substitute):
    """Substitute every site; a site without a value is an error, never a draw."""

    def __init__(self, fn: Callable, data: dict[str, PyTree]) -> None:
        super().__init__(fn, data=data)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the value of one site."""
        super().process_message(msg)
        if _is_free(msg) and msg["name"] not in (self.data or ()):
            raise ParameterError(
                f"the program's site {msg['name']!r} has no value.",
                got=f"values for {sorted(self.data or ())}",
                expected=f"a value for {msg['name']!r} too",
                fix="check the spelling; every site of the program needs a value",
            )


def constrain(sites: Mapping[str, Site], unconstrained: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Map unconstrained values to the supports of their sites."""
    return {name: _map(sites[name], value, False) for name, value in unconstrained.items()}


def unconstrain(sites: Mapping[str, Site], values: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Map values to unconstrained space."""
    return {name: _map(sites[name], value, True) for name, value in values.items()}


def _map(site: Site, value: PyTree, inverse: bool) -> PyTree:
    if site.is_network:
        return value
    bijection = dist.biject_to(site.support)
    return bijection.inv(value) if inverse else bijection(value)


def log_jacobian(sites: Mapping[str, Site], unconstrained: Mapping[str, PyTree]) -> Scalar:
    """Log determinant of `constrain`, in nats; networks add nothing."""
    total = jnp.zeros(())
    for name, value in unconstrained.items():
        if not sites[name].is_network:
            bijection = dist.biject_to(sites[name].support)
            total = total + jnp.sum(bijection.log_abs_det_jacobian(value, bijection(value)))
    return total
