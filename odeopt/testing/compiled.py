"""The conformance suite of what is compiled: a field, an update rule or a solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.errors import CompilationError, OdeoptWarning
from odeopt.gradient.result import Result
from odeopt.grid import TimeGrid
from odeopt.inner.base import InnerOptimizer
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.base import StepSolver
from odeopt.testing.problems import SmoothProblem, relative_error, smooth_problem
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


def check_compiled(
    make: Callable[[Loss], InnerOptimizer],
    solver: StepSolver | None = None,
    backend: str = "trace",
    device: torch.device | None = None,
) -> None:
    """Check a field or an update rule, and a solver, compiled; raises AssertionError if wrong.

    Values and gradients are those of eager execution, for several inputs, one after the other
    with the same optimiser: other numbers, another number of examples, tasks, and another number
    that the loss captures. Kernels are compiled, and found again by a call that differs in
    numbers only.

    Args:
        make: makes the field or the rule from `loss(params, batch)` or
            `loss(params, batch, hparams)`.
        solver: the solver of a field; None is the default one.
        backend: a name in `odeopt.BACKENDS`; "inductor" takes seconds and needs a C++ compiler.
        device: where to compute.
    """
    case = _Case(make, solver, backend)
    problem = smooth_problem(device)
    case.check(problem, "for the first inputs")
    _check_again(case, problem)
    shorter = problem._replace(
        batch=(problem.batch[0][:4], problem.batch[1][:4]),
        hparams=problem.hparams | {"targets": problem.hparams["targets"][:1]},
    )
    case.check(shorter, "for another number of examples")
    case.check(problem, "for the number of examples that came first, once another has come")
    case.check(smooth_problem(device, tasks=2), "with tasks", tasks=True)
    case.loss.scale = 1.5
    case.check(problem, "once a number that the loss captures has changed")


class _Scaled:
    """A loss that captures a number."""

    def __init__(self) -> None:
        self.scale = 1.0
        self._loss: Any = smooth_problem().loss

    def __call__(self, params: PyTree, batch: PyTree, *hparams: PyTree) -> Tensor:
        return self.scale * self._loss(params, batch, *hparams)


class _Case:
    """A compiled optimiser that is used again and again, and eager ones that are made anew."""

    def __init__(
        self, make: Callable[[Loss], InnerOptimizer], solver: StepSolver | None, backend: str
    ) -> None:
        self.loss = _Scaled()
        self._make, self._solver = make, solver
        self._compiled = ODEOptimizer(make(self.loss), solver, compile=backend)

    def check(self, problem: SmoothProblem, when: str, tasks: bool = False) -> Result:
        """Compare a compiled result with an eager one."""
        eager = ODEOptimizer(self._make(self.loss), self._solver)
        expected = self._run(eager, problem, tasks)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = self._run(self._compiled, problem, tasks)
        except CompilationError as error:
            raise AssertionError(f"{when}: {error}") from error
        for warning in caught:
            declined = issubclass(warning.category, OdeoptWarning)
            assert not declined, f"{when} it is not compiled: {warning.message}"
        gap = relative_error(_numbers(found), _numbers(expected))
        assert gap < 1e-10, (
            f"{when} compiled results differ from eager ones: relative error {gap:.1e}"
        )
        return found

    def _run(self, opt: ODEOptimizer, problem: SmoothProblem, tasks: bool) -> Result:
        grid = TimeGrid.uniform(0.3, 3)
        call = opt.value_and_grad(problem.loss, tasks=tasks)
        return call(problem.params, problem.batch, grid, problem.batch, problem.hparams)


def _numbers(found: Result) -> list[Tensor]:
    grads = found.grads
    return [found.value, *tree.tensors((grads.params, grads.hparams, grads.dt))]


def _check_again(case: _Case, problem: SmoothProblem) -> None:
    moved = tree.map_tensors(lambda leaf: leaf + 0.1, problem.params)
    other = problem._replace(params=moved, batch=problem.outer_batch)
    stats = case.check(other, "for other numbers").stats
    assert stats.compile_misses == 0, (
        f"{stats.compile_misses} kernels are compiled anew in a call that differs in numbers only:"
        " the field, rule or solver holds a number or a tensor that changes from call to call"
    )
