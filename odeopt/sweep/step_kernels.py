"""The pull of each step, where steps differ in their number of stages."""

from __future__ import annotations

from torch import Tensor

from odeopt.adjoint.base import Cost, Interval, LocalAdjoint
from odeopt.kernels import Kernels
from odeopt.noted import Noted
from odeopt.solver.base import Solver
from odeopt.sweep.backward import PullKernel
from odeopt.sweep.stepper import SettledStepper


class StepKernels:
    """The pull of each step, with the number of stages that the step was made with."""

    def __init__(self, kernels: Kernels, stepper: SettledStepper, adjoint: LocalAdjoint) -> None:
        self._kernels, self._stepper, self._adjoint = kernels, stepper, adjoint
        self._known: dict[int | None, tuple[PullKernel, Cost]] = {}

    def solver(self, k: int) -> Solver:
        """What step k was made with."""
        return self._kernels.at(self._stages(k)).solver

    def cost(self, k: int) -> Cost:
        """Of the pull over an interval that begins with step k."""
        return self._at(k)[1]

    def pull(self, k: int, interval: Interval, lam: Tensor) -> Noted:
        """Take lam back over an interval that begins with step k."""
        return self._at(k)[0](k, interval, lam)

    def _at(self, k: int) -> tuple[PullKernel, Cost]:
        stages = self._stages(k)
        if stages not in self._known:
            kernels = self._kernels.at(stages)
            self._known[stages] = kernels.pull(self._adjoint), kernels.cost(self._adjoint)
        return self._known[stages]

    def _stages(self, k: int) -> int | None:
        """None for adjoints with a method of their own."""
        return self._stepper.stages_at(k) if self._adjoint.replays else None
