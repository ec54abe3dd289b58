"""What particle engines refuse, before compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ssmkit.engines.options import check_counts
from ssmkit.errors import (
    ModelError,
    OptionError,
    ShapeError,
    SingularTransitionError,
    SsmkitError,
)
from ssmkit.models.base import StateSpaceModel, input_at
from ssmkit.models.distributions import SingularNormal, base_distribution, is_a
from ssmkit.smc.additive import METHODS, Additive
from ssmkit.smc.proposals import Linearised, Proposal
from ssmkit.smc.recipes import Step
from ssmkit.smc.resampling import SCHEMES
from ssmkit.smc.smoothers import NEED_DENSITY, SMOOTHERS
from ssmkit.smc.started import Started
from ssmkit.typing import Array, Inputs, Law

NO_DENSITY = (
    'smoother="genealogy"; proposal=sk.Linearised() of sk.SMC, or '
    "proposal=sk.learned.Induced() of sk.SIXO"
)


def check_options(engine: Any) -> None:
    """Refuse impossible options.

    Raises:
        OptionError: names the option, what it was and what it can be.
    """
    check_cloud_options(engine)
    if isinstance(engine.lookahead, str) and engine.lookahead != "mean":
        raise OptionError(
            "sk.SMC: unknown lookahead.",
            got=repr(engine.lookahead),
            expected='None, "mean", or a function (model, x, y, u)',
        )
    if engine.proposal is not None and not isinstance(engine.proposal, Proposal | Linearised):
        raise OptionError(
            "sk.SMC: unknown proposal.",
            got=repr(engine.proposal),
            expected="None, sk.Linearised(), or sk.Proposal(transition)",
            fix="proposal=sk.Proposal(your_function)",
        )


def check_cloud_options(engine: Any) -> None:
    """Refuse impossible options of any engine by particles.

    Raises:
        OptionError: names the option, what it was and what it can be.
    """
    check_counts(engine, {"num_particles": 2, "num_paths": 1, "num_moves": 1, "lag": 0})
    kind = f"sk.{type(engine).__name__}"
    if not callable(engine.resampling) and engine.resampling not in SCHEMES:
        raise OptionError(
            f"{kind}: unknown resampling scheme.",
            got=repr(engine.resampling),
            expected=[*SCHEMES, "or a function (key, weights) -> ancestors"],
        )
    if not callable(engine.threshold) and not 0 <= engine.threshold <= 1:
        raise OptionError(
            f"{kind}: threshold is a share of the particles.",
            got=engine.threshold,
            expected="a number from 0 (never resample) to 1 (always), or a function of the weights",
            fix="threshold=0.5",
        )
    if engine.smoother is not None and engine.smoother not in SMOOTHERS:
        raise OptionError(
            f"{kind}: unknown smoother.", got=repr(engine.smoother), expected=[*SMOOTHERS, None]
        )


def check_model(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse models that this engine cannot draw from, or score.

    Raises:
        ImproperStartError: the model starts diffuse.
        ModelError: a law that cannot be sampled, or a proposal that fails.
        SingularTransitionError: a density is needed where there is none.
        ShapeError: a proposal of another shape than the state.
    """
    u = input_at(us, 0)
    here = model.at(0)
    x = _sampled("initial", lambda: here.initial(u))
    _sampled("transition", lambda: here.transition(_zeros(x), u))
    y = _sampled("emission", lambda: here.emission(_zeros(x), u))
    check_additive(engine, model, us)
    if engine.smoother in NEED_DENSITY:
        require_density(f"smoother={engine.smoother!r}", model, us)
    if isinstance(engine.proposal, Proposal):
        require_density(f"{engine.proposal!r}", model, us)
        _check_proposal(engine.proposal, model, Step(0, _zeros(y), u, None), _zeros(x))
    if getattr(engine, "lookahead", None) == "mean" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise OptionError(
            'lookahead="mean" needs a state that has a mean.',
            got=f"a state of type {x.dtype}",
            fix="lookahead=your_function, with (model, x, y, u)",
        )


def check_additive(engine: Any, model: StateSpaceModel, us: Inputs) -> None:
    """Refuse additive functionals that cannot be carried along.

    Raises:
        OptionError: an option has an impossible value.
        ModelError: its function fails.
        ShapeError: its function returns other shapes at time zero than later.
        SingularTransitionError: a density is needed where there is none.
    """
    additive = getattr(engine, "additive", None)
    if additive is None:
        return
    kind = f"sk.{type(engine).__name__}"
    if not isinstance(additive, Additive):
        raise OptionError(
            f"{kind}: additive is no functional.",
            got=repr(additive),
            expected="None, sk.AdditiveFunctional(function), or sk.Score()",
            fix="additive=sk.AdditiveFunctional(your_function)",
        )
    check_counts(additive, {"num_draws": 1, "num_moves": 1})
    if additive.method not in METHODS:
        raise OptionError(
            f"{kind}: unknown method of an additive functional.",
            got=repr(additive.method),
            expected=METHODS,
        )
    if additive.method != "genealogy":
        require_density(f"additive={additive!r}", model, us, fix='method="genealogy"')
    u, here = input_at(us, 0), model.at(0)
    x = _zeros(_sampled("initial", lambda: here.initial(u)))
    y = _zeros(_sampled("emission", lambda: here.emission(x, u)))
    later = _term(additive, model, x, x, Step(0, y, u, None))
    begins = not isinstance(model, Started)  # of a stream past its start, no first state is scored
    first = _term(additive, model, None, x, Step(0, y, u, None)) if begins else later
    if first != later:
        raise ShapeError(
            "an additive functional adds the same shapes at every time.",
            got=f"{first} at time zero, {later} later",
            expected="the same pytree of real arrays",
            fix="jnp.zeros of the same shape where x_before is None",
        )


def _term(additive: Additive, model: StateSpaceModel, before: Any, x: Array, s: Step) -> Any:
    try:
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: additive.term(model, before, x, s)))
    except SsmkitError:
        raise
    except Exception as error:
        raise ModelError(
            "the function of the additive functional failed.",
            got=f"{type(error).__name__}: {error}",
            expected="a function (model, x_before, x, y, u) that returns arrays, where x_before is "
            "None at time zero",
        ) from error


def _zeros(abstract: Any) -> Array:
    return jnp.zeros(abstract.shape, abstract.dtype)


def _sampled(name: str, make: Callable[[], Law]) -> Any:
    """Shape and type of a draw."""
    try:
        return jax.eval_shape(lambda: make().sample(jax.random.key(0)))
    except SsmkitError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model cannot be sampled: {name} fails.",
            got=f"{type(error).__name__}: {error}",
            expected="a law with .sample(key)",
            fix="a numpyro distribution that can be sampled, or a Gaussian engine",
        ) from error


def require_density(needs: str, model: StateSpaceModel, us: Inputs, fix: str = NO_DENSITY) -> None:
    """Refuse a transition that has no density.

    Args:
        needs: what needs one, in the words of the call.
        model: the model.
        us: inputs, or None.
        fix: what to do where there is none.

    Raises:
        SingularTransitionError: it has none.
    """
    here, u = model.at(0), input_at(us, 0)
    x = _sampled("initial", lambda: here.initial(u))
    kinds: list[type] = []
    jax.eval_shape(lambda: kinds.append(type(base_distribution(here.transition(_zeros(x), u)))))
    if issubclass(kinds[0], SingularNormal | dist.Delta):
        raise SingularTransitionError(
            f"{needs} needs a transition density, and this transition has none.",
            got=f"a transition {kinds[0].__name__}",
            expected="a transition with a density",
            fix=fix,
        )


def _check_proposal(proposal: Proposal, model: StateSpaceModel, s: Step, x: Array) -> None:
    for name, before in (("initial", None), ("transition", x)):
        try:
            law = _law(proposal, model, before, s)
        except Exception as error:
            raise ModelError(
                f"the proposal's {name} function failed.",
                got=f"{type(error).__name__}: {error}",
                expected="a function (model, x, y, u), or (model, y, u) for initial, that returns "
                "a distribution",
            ) from error
        if law is None:
            continue
        if not is_a(law, dist.Distribution) or law.batch_shape != () or law.event_shape != x.shape:
            is_law = is_a(law, dist.Distribution)
            got = f"{type(law).__name__}" + (
                f" with batch shape {law.batch_shape}, event shape {law.event_shape}"
                if is_law
                else ""
            )
            raise ShapeError(
                f"the proposal's {name} function must return one law of a state.",
                got=got,
                expected=f"batch shape (), event shape {x.shape}",
                fix=".to_event(1) for independent coordinates",
            )


def _law(proposal: Proposal, model: StateSpaceModel, before: Array | None, s: Step) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda: found.append(proposal.law(model.at(0), before, s.y, s.u)))
    return found[0]
