"""Flow annealed importance sampling bootstrap: a normalizing flow as the posterior."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ssmkit import keys
from ssmkit.engines.fab_checks import check_learned, check_options, check_target
from ssmkit.engines.fab_joint import joint_target
from ssmkit.engines.fab_posterior import evaluate, posterior_of
from ssmkit.engines.fab_run import train
from ssmkit.engines.fab_target import DensityTarget, ProgramTarget
from ssmkit.engines.fab_training import Task, begin
from ssmkit.engines.objective import Objective, without_labels
from ssmkit.engines.options import RunOptions, short_repr
from ssmkit.learned.flows import CouplingFlow
from ssmkit.learned.replay_buffer import ReplayBuffer
from ssmkit.models.density import Density
from ssmkit.models.whitening import frame_of
from ssmkit.posterior import Data, Posterior
from ssmkit.smc.kernels import Kernel, hamiltonian, random_walk
from ssmkit.typing import Array, Key


@dataclasses.dataclass(frozen=True, repr=False)
class FAB:
    r"""Learn the posterior of a program's parameters, or any density, as a normalizing flow.

    \[\min_q \int \frac{p(\theta)^2}{q(\theta)}, \qquad
    \hat Z = \frac1N \sum_i \frac{p(\theta_i)}{q(\theta_i)}, \quad \theta_i \sim q\]

    The flow learns from draws that are annealed from itself to where the target is and it is not,
    so that modes that lie apart are found and kept. The posterior holds independent draws of the
    flow with importance weights, an unbiased evidence, and a warning where they are not to be
    trusted.

    Args:
        evidence: the state engine that scores parameters. None for a `Density`, and for parameters
            and states jointly: then the flow is one of the parameters, with Gaussian noise of the
            path given them (`learned.PathFlow`).
        flow: what builds the flow: `learned.CouplingFlow`, or anything with
            ``build(key, dim, dtype)``.
        num_iterations: batches that are annealed.
        batch_size: draws in a batch.
        num_temperatures: between the flow and where annealing goes.
        moves: "hamiltonian" or "walk", which needs no gradient of the target; None chooses by the
            evidence.
        num_leapfrog: of Hamiltonian moves.
        num_moves: at each temperature.
        threshold: resample where the effective share of a batch is at most this; 0 never does.
        alpha: order of the divergence; 2 is the variance of the weights, 1 the forward
            Kullback–Leibler divergence.
        buffer: `learned.ReplayBuffer`; None learns from fresh draws only.
        learning_rate: of Adam at its highest; it rises for a tenth of the updates, and falls to
            zero along a cosine.
        defence: share of the prior that the flow is mixed with, which bounds the weights.
        whiten: use coordinates in which the prior is a standard normal law, as far as it can be.
        bound: standard deviations of the prior beyond which the target counts as zero; None for
            no bound.
        num_draws: weighted draws that the posterior holds.
        num_check: particles of an independent tempered run from the prior (from the untrained flow
            for a density), which tells of modes that the flow has missed; 0 for none.
        num_state_draws: parameter draws for which states are computed.

    Raises:
        OptionError: an impossible option.
        ParameterError: sites without a proper prior, or discrete ones.
        EngineError: nothing to learn, or no evidence.
        NonFiniteError: the target is finite at none of the first draws.

    Example:
        >>> import jax.numpy as jnp, ssmkit as sk
        >>> def log_prob(x): return -0.5 * jnp.sum((x - 1.0) ** 2)
        >>> engine = sk.FAB(
        ...     flow=sk.learned.CouplingFlow(num_layers=2, width=16), num_iterations=50,
        ...     buffer=sk.learned.ReplayBuffer(capacity=20, begin=5), num_draws=1000, num_check=0)
        >>> found = sk.infer(0, engine, sk.Density(log_prob, 2))
        >>> bool(abs(found.log_evidence - jnp.log(2 * jnp.pi)) < 5 * found.log_evidence_se)
        True

    Source: L. Midgley, V. Stimper, G. Simm, B. Schölkopf and J. M. Hernández-Lobato (2023), Flow
    annealed importance sampling bootstrap.
    """

    evidence: Any = None
    flow: Any = CouplingFlow()
    num_iterations: int = 600
    batch_size: int = 256
    num_temperatures: int = 4
    moves: str | None = None
    num_leapfrog: int = 3
    num_moves: int = 1
    threshold: float = 0.0
    alpha: float = 2.0
    buffer: ReplayBuffer | None = ReplayBuffer()
    learning_rate: float = 1e-3
    defence: float = 0.1
    whiten: bool = True
    bound: float | None = 8.0
    num_draws: int = 10_000
    num_check: int = 1000
    num_state_draws: int = 50

    takes_learned = True
    takes_checkpoint = True
    serves_densities = True
    always_shown = ("num_iterations",)

    __repr__ = short_repr

    @classmethod
    def as_published(cls, **changes: Any) -> FAB:
        """The source's settings: no defence, no whitening, no bound; ``changes`` replace some.

        Example:
            >>> import ssmkit as sk
            >>> sk.FAB.as_published(num_iterations=100).defence
            0.0
        """
        settings: dict[str, Any] = {
            "defence": 0.0,
            "whiten": False,
            "bound": None,
            "num_check": 0,
        }
        return cls(**settings | changes)

    def fit(self, key: Key, target: Any, data: Data | None, options: RunOptions) -> Posterior:
        """Learn, draw and judge; called by `infer`."""
        check_options(self)
        check_target(self, target, options)
        found = self.target_of(key, target, data, options)
        builder = found.builder(self.flow)
        fresh = builder.build(keys.purpose(key, "restarts"), found.dim, found.dtype)
        task = Task(self, found, keys.purpose(key, "learning"))
        if options.learned is not None:
            check_learned(self, options.learned, fresh)
        learner = begin(task, fresh if options.learned is None else options.learned)
        learner, report = train(task, learner, options)
        judged = evaluate(task, learner, fresh, keys.purpose(key, "draws"))
        return posterior_of(self, key, (target, found, data), (learner, report, judged), options)

    def target_of(self, key: Key, target: Any, data: Data | None, options: RunOptions) -> Any:
        """What the flow is to learn."""
        if isinstance(target, Density) or data is None:
            return DensityTarget(target, jnp.result_type(float))
        prior_key, plain = keys.purpose(key, "simulation"), without_labels(data)
        if self.evidence is None:
            return joint_target(self, prior_key, target, plain)
        zeros, frame = frame_of(target, prior_key, whiten=self.whiten)
        time_key = keys.purpose(key, "time")
        objective = Objective(self.evidence, target, plain, time_key, options.batched)
        return ProgramTarget(objective, frame, zeros, self.bound)

    def rule(self) -> Any:
        """Adam, whose rate rises and falls."""
        import optax

        updates = 1 if self.buffer is None else self.buffer.num_updates
        total = max(self.num_iterations * updates, 2)
        schedule = optax.warmup_cosine_decay_schedule(
            0.1 * self.learning_rate, self.learning_rate, max(total // 10, 1), total
        )
        return optax.adam(schedule)

    def kernel(self) -> Kernel:
        """What moves draws."""
        return random_walk() if self.walks else hamiltonian(self.num_leapfrog)

    @property
    def walks(self) -> bool:
        """Whether moves do without the gradient of the target."""
        if self.moves is not None or self.evidence is None:
            return self.moves == "walk"
        is_noisy = self.evidence.evidence_kind == "unbiased"
        return is_noisy or not getattr(self.evidence, "has_gradient", True)

    def temperatures(self, dtype: Any) -> Array:
        """Between both ends, evenly."""
        return jnp.linspace(0.0, 1.0, self.num_temperatures + 2, dtype=dtype)[1:-1]

    def share_of(self, target: Any) -> float:
        """Share of the prior that the flow is mixed with."""
        return self.defence if target.has_prior else 0.0
