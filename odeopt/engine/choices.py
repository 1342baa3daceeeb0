"""The four choices of an optimiser, and whether they work together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from odeopt.adjoint.base import Adjoint, LocalAdjoint
from odeopt.adjoint.discrete import FirstOrderAdjoint
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.checkpoint.store import JournalSettings
from odeopt.checkpoint.uniform import Every
from odeopt.engine.compile.compiler import Compiler
from odeopt.engine.safety import Safety
from odeopt.errors import CompatibilityError
from odeopt.inner.base import InnerOptimizer
from odeopt.inner.field import GradientField
from odeopt.inner.rule import UpdateRule
from odeopt.inner.stream import Stream
from odeopt.solver.base import GridSolver, Solver, StepSolver
from odeopt.tools.captured import check_not_scripted
from odeopt.tools.shown import shown


@dataclass(frozen=True)
class Choices:
    """The four choices of an `ODEOptimizer`, and its limits."""

    field: InnerOptimizer
    solver: Solver
    adjoint: Adjoint
    checkpoints: CheckpointSchedule
    safety: Safety
    compiler: Compiler | None = None
    watched: set[object] = dataclasses.field(default_factory=set[object], compare=False)
    """The kinds of inputs with which each operation of the loss has been looked at."""

    @property
    def needs_length(self) -> bool:
        """Whether the number of steps must be known before the forward sweep."""
        return self.checkpoints.needs_length or self.adjoint.needs_length

    @property
    def follows_flow(self) -> bool:
        """Whether the gradient stands for that of the flow, not of gradient descent's own steps."""
        if isinstance(self.field, UpdateRule) or not self.adjoint.consistent:
            return False
        return self.adjoint.needs_velocity or not self.solver.is_descent

    @property
    def replays(self) -> bool:
        """Whether the backward sweep needs every state, and makes again those not kept."""
        adjoint = self.adjoint
        if not isinstance(adjoint, LocalAdjoint):
            return False
        return adjoint.replays or not self.checkpoints.is_mesh

    @property
    def replayed(self) -> bool:
        """Whether some state will be made again, so that it can be compared."""
        return self.replays and not self.checkpoints.keeps_all

    def parts(self) -> Iterator[str]:
        """What is said of the choices: limits and a compiler only where they are others."""
        solver = () if self.solver.takes_rules else (self.solver,)
        yield from map(shown, (self.field, *solver, self.adjoint, self.checkpoints))
        if self.safety != Safety():
            yield f"safety={shown(self.safety)}"
        if self.compiler is not None:
            yield f"compile={self.compiler.backend!r}"

    def forward_only(self) -> Choices:
        """The choices for a solve that nobody will differentiate."""
        return replace(self, adjoint=FirstOrderAdjoint(), checkpoints=Every(1))

    def fit(self, y0: Tensor, steps: int | None) -> Choices:
        """The choices for states like y0 and, if it is known, that many steps to be pulled."""
        fitted = self.checkpoints.on(y0.device).fit(y0.numel() * y0.element_size(), steps)
        return replace(self, checkpoints=fitted)

    @property
    def elsewhere(self) -> str:
        """Names of the tiers other than the device."""
        tiers = self.checkpoints.tiers if isinstance(self.adjoint, LocalAdjoint) else ()
        return ", ".join(type(tier).__name__ for tier in tiers if tier.kind != "device")

    @property
    def journal(self) -> tuple[int, JournalSettings] | None:
        """The number of the tier in which progress is saved, and how; None if it is not."""
        settings = [tier.journal for tier in self.checkpoints.tiers]
        return next(((tier, own) for tier, own in enumerate(settings) if own is not None), None)

    def check_autograd(self) -> None:
        """Raise `CompatibilityError` if states are not where autograd keeps them."""
        if self.elsewhere:
            raise CompatibilityError(
                f"{type(self.checkpoints).__name__} keeps states elsewhere ({self.elsewhere}), but"
                " solve hands its states to autograd, which keeps them on the device: use"
                " opt.value_and_grad(outer_loss), or keep them on the device."
            )

    def check(self) -> None:
        """Raise `CompatibilityError` on choices that do not work together."""
        check_not_scripted(self.field)
        if isinstance(self.field, UpdateRule):
            self._check_rule(self.field)
        elif self.solver.real_spectrum and not isinstance(self.field, GradientField):
            raise CompatibilityError(
                f"{type(self.solver).__name__} is stable for fields with a real spectrum only, a"
                f" symmetric Jacobian, which {type(self.field).__name__} is not known to have: use"
                " RK4() or Adaptive(rtol, atol), or, if its velocity is minus the gradient of a"
                " loss, GradientFlow(loss) or a GradientField of your own."
            )
        if self.journal is not None:
            self._check_journal()
        if not isinstance(self.adjoint, LocalAdjoint):
            return
        self.adjoint.check(self.solver)
        if isinstance(self.solver, GridSolver) and not self.checkpoints.is_mesh:
            raise CompatibilityError(
                f"{type(self.checkpoints).__name__} replays steps, which"
                f" {type(self.solver).__name__} cannot. Use Every(1), Density(n) or Graded(n)"
                " with ContinuousAdjoint, or a step solver such as Adaptive(rtol, atol)."
            )

    def _check_journal(self) -> None:
        if sum(tier.journal is not None for tier in self.checkpoints.tiers) > 1:
            raise CompatibilityError(
                "two tiers are Disk(path, resume=True), but progress is saved in one folder: leave"
                " resume out in the other."
            )
        if not isinstance(self.adjoint, LocalAdjoint):
            raise CompatibilityError(
                f"{type(self.adjoint).__name__} keeps no states from which Disk(path, resume=True)"
                " could go on: leave resume out."
            )
        if self.safety.power_iterations:
            raise CompatibilityError(
                "Safety.power_iterations carries a vector from step to step, which Disk(path,"
                " resume=True) does not save: leave one of them out."
            )

    def _check_rule(self, rule: UpdateRule) -> None:
        name, adjoint = type(rule).__name__, type(self.adjoint).__name__
        if not self.solver.takes_rules:
            raise CompatibilityError(
                f"{name} is an update rule, which brings its own steps, but a solver was given"
                f" ({type(self.solver).__name__}): leave it out. The grid's steps are the learning"
                " rates."
            )
        if self.adjoint.needs_velocity:
            raise CompatibilityError(
                f"{adjoint} differentiates a flow, but {name} is an update rule, which has no"
                " velocity: use DiscreteAdjoint(), TruncatedAdjoint(n) or FirstOrderAdjoint()."
            )
        if self.safety.power_iterations:
            raise CompatibilityError(
                f"Safety.power_iterations estimates the spectrum of a velocity, which {name}, an"
                " update rule, does not have: leave it at 0."
            )

    def check_stream(self, stream: Stream) -> None:
        """Raise `CompatibilityError` if batches may not change from step to step."""
        solver, adjoint = type(self.solver).__name__, type(self.adjoint).__name__
        if not isinstance(self.solver, StepSolver) or self.solver.chooses_steps:
            raise CompatibilityError(
                f"a Stream gives each step of the grid its batch, but {solver} chooses its own"
                " steps: use an update rule, Euler() or another solver with fixed steps."
            )
        if self.adjoint.needs_velocity:
            raise CompatibilityError(
                f"{adjoint} looks between the steps, where a Stream has no batch: use"
                " DiscreteAdjoint(), TruncatedAdjoint(n) or FirstOrderAdjoint()."
            )
        if stream.seed is not None and self.solver.stages > 1:
            raise CompatibilityError(
                f"a Stream with a seed draws random numbers once per step, but {solver} evaluates"
                f" the loss {self.solver.stages} times: use an update rule, Euler() or another"
                " solver with one stage."
            )
