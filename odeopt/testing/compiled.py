"""The conformance suites of compile backends and of what is compiled by them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.engine.compile import Backend, Compiled, record
from odeopt.errors import CompilationError, OdeoptWarning
from odeopt.gradient.result import Result
from odeopt.grid import TimeGrid
from odeopt.inner.base import InnerOptimizer
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.base import StepSolver
from odeopt.testing.problems import SmoothProblem, number, relative_error, smooth_problem
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


def check_backend(backend: Backend, device: torch.device | None = None) -> None:
    """Check a compile backend; raises AssertionError if it is wrong.

    What it makes of graphs gives what the graphs give, in single and double precision, for the
    inputs that they were recorded with and for others of the same shapes; it leaves its inputs as
    they are; results of one call are not those of the next; and it sees what becomes of a tensor
    that a loss captures. Takes seconds with a backend that generates code.

    Args:
        backend: an instance.
        device: where to compute.
    """
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(0, dtype=dtype, device=device)
        _check_numbers(backend, like)
        _check_what_is_captured(backend, like)


def _compile(
    backend: Backend, function: Callable[..., list[Tensor]], inputs: list[Tensor]
) -> Compiled:
    return backend.compile(record(function, inputs), inputs)


def _draw(like: Tensor, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _layers(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> list[Tensor]:
    """Products, with and without tasks and factors, element by element, sums and views."""
    hidden = torch.tanh(torch.baddbmm(bias[:, None], x, weight, beta=0.5, alpha=2.0))
    narrow = torch.addmm(x[0, :2, :4], hidden[0, :, :2].mT, x[0], beta=-1.0, alpha=0.25)
    loss = (hidden @ weight.mT - x).square().mean((-2, -1))
    return [hidden, narrow, loss, loss.sum() * scale, scale.exp(), x.mT.reshape(3, -1), bias]


def _check_numbers(backend: Backend, like: Tensor) -> None:
    def inputs(seed: int) -> list[Tensor]:
        shapes = ((3, 8, 4), (3, 4, 16), (3, 16), ())
        return [_draw(like, *shape, seed=seed + place) for place, shape in enumerate(shapes)]

    run = _compile(backend, _layers, inputs(0))
    first, again = inputs(0), inputs(0)
    results = list(run(*first))
    _check_same(results, _layers(*again), "for the inputs that it was recorded with")
    changed = [k for k, (x, y) in enumerate(zip(first, again, strict=True)) if not x.equal(y)]
    assert not changed, f"the inputs {changed} have been changed"
    copies = [x.clone() for x in results]
    _check_same(list(run(*inputs(9))), _layers(*inputs(9)), "for other inputs")
    lost = [k for k, (x, y) in enumerate(zip(results, copies, strict=True)) if not x.equal(y)]
    assert not lost, f"the results {lost} of a call have been changed by the next call"


def _check_what_is_captured(backend: Backend, like: Tensor) -> None:
    matrix, factor = _draw(like, 4, 4), number(3.0, like)

    def function(x: Tensor) -> list[Tensor]:
        return [(matrix @ x * factor).sin() + x @ matrix, factor * 2]

    x = _draw(like, 4, seed=1)
    run = _compile(backend, function, [x])
    _check_same(list(run(x)), function(x), "with captured tensors")
    matrix.mul_(2)
    factor.add_(1)
    when = "once captured tensors have been changed in place"
    _check_same(list(run(x)), function(x), when)


def _check_same(found: list[Tensor], expected: list[Tensor], when: str) -> None:
    assert len(found) == len(expected), f"{len(found)} results, expected {len(expected)}"
    for place, (x, y) in enumerate(zip(found, expected, strict=True)):
        own, other = ((z.shape, z.dtype, z.device) for z in (x, y))
        assert own == other, f"result {place} {when} has {own}; expected {other}"
        error, limit = relative_error(x, y), 100 * torch.finfo(y.dtype).eps
        assert error <= limit, f"result {place} {when} is off by {error:.1e} (at most {limit:.0e})"


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


class _ScaledLoss:
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
        self.loss = _ScaledLoss()
        self._make, self._solver = make, solver
        self._compiled = ODEOptimizer(make(self.loss), solver, compile=backend)

    def check(self, problem: SmoothProblem, when: str, tasks: bool = False) -> Result:
        """Compare a compiled result with an eager one."""
        eager = ODEOptimizer(self._make(self.loss), self._solver)
        expected = self._run(eager, problem, tasks)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = self._run(self._compiled, problem, tasks)
        except CompilationError as error:
            raise AssertionError(f"{when}: {error}") from error
        for warning in caught:
            declined = issubclass(warning.category, OdeoptWarning)
            assert not declined, f"{when} it is not compiled: {warning.message}"
        gap = relative_error(_numbers(result), _numbers(expected))
        assert gap < 1e-10, (
            f"{when} compiled results differ from eager ones: relative error {gap:.1e}"
        )
        return result

    def _run(self, opt: ODEOptimizer, problem: SmoothProblem, tasks: bool) -> Result:
        grid = TimeGrid.uniform(0.3, 3)
        call = opt.value_and_grad(problem.loss, tasks=tasks)
        return call(problem.params, problem.batch, grid, problem.batch, problem.hparams)


def _numbers(result: Result) -> list[Tensor]:
    grads = result.grads
    return [result.value, *tree.tensors((grads.params, grads.hparams, grads.dt))]


def _check_again(case: _Case, problem: SmoothProblem) -> None:
    moved = tree.map_tensors(lambda leaf: leaf + 0.1, problem.params)
    other = problem._replace(params=moved, batch=problem.outer_batch)
    stats = case.check(other, "for other numbers").stats
    assert stats.compile_misses == 0, (
        f"{stats.compile_misses} kernels are compiled anew in a call that differs in numbers only:"
        " the field, rule or solver holds a number or a tensor that changes from call to call"
    )
