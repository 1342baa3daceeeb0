"""One trial evaluation that finds mistakes which would otherwise give silent wrong gradients."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from odeopt.engine.choices import Choices
from odeopt.engine.compile.compiler import Compiler
from odeopt.engine.flat import BoundRule, bind
from odeopt.engine.problem import Problem
from odeopt.engine.watch import (
    CAPTURED,
    LossWatch,
    check_dependent,
    check_watched,
    evaluation,
    unchanged,
)
from odeopt.errors import CapturedTensorError, NondeterminismError
from odeopt.inner.base import InnerOptimizer
from odeopt.solver.dynamics import Data, Theta
from odeopt.tools import tree
from odeopt.tools.arguments import noting_losses
from odeopt.tools.autodiff import can_record, transforms_only
from odeopt.tools.captured import check_not_scripted
from odeopt.tools.seeds import generator_states, same_random_state, seeded, taking_turns
from odeopt.tools.transforms import any_requires_grad, captures, inside_transform, requires_grad
from odeopt.tools.types import PyTree


def known(choices: Choices, problem: Problem) -> bool:
    """Whether a call with inputs of these shapes went well whose first step was recorded.

    Such a step is looked at while it is made (see `Tape`), so that no trial is needed.
    """
    return (_RECORDED, _kind(problem)) in choices.watched and can_record(problem.tensors())


def note_known(choices: Choices, problem: Problem) -> None:
    """Note that such a call went well."""
    choices.watched.add((_RECORDED, _kind(problem)))


_RECORDED = "recorded"


def probe(choices: Choices, problem: Problem) -> None:
    """Evaluate the inner optimiser twice, for the first task, with every input detached.

    Costs two gradient evaluations of one task, one of them as recorded when kernels are compiled;
    none when there is no step to make. The first call with inputs of a kind also looks at each
    operation. It warns of a model with kinks where the gradient is to be that of the flow.

    Raises:
        CapturedTensorError: if the loss or a result requires grad nevertheless.
        NondeterminismError: if it drew random numbers that no seed fixes, or the results differ.
        InputError: if the velocity has another structure, shape or dtype than the state, or the
            loss rounds to half precision, takes `.data`, changes an argument in place or does not
            depend on the parameters.
        CompatibilityError: if the loss is run by TorchScript, uses `torch.no_grad` where that
            is not respected, or does what torch cannot differentiate.
    """
    if problem.grid.steps == 0:
        return
    evaluate = _Evaluation(choices.field, problem)
    watch = _watch(choices, problem)
    with taking_turns():  # others that draw must not be taken for the loss
        before = generator_states(problem.y0.device)
        with (
            torch.enable_grad(), unchanged(problem.tensors()), noting_losses() as losses,
            watch or nullcontext(),
        ):  # fmt: skip
            value = evaluate()
        after = generator_states(problem.y0.device)
    if watch is not None:
        check_watched(watch, choices.adjoint.differentiation, choices.follows_flow)
    if requires_grad(value) or any(captures(loss) for loss in losses):
        raise CapturedTensorError(CAPTURED.format(what="the loss (or velocity)"))
    if watch is not None and not losses:
        evaluate.check_linearizes()
    check_dependent(losses)
    drew = not same_random_state(before, after) and evaluate.draws()
    compared = False
    if choices.compiler is not None and not drew:
        compared = evaluate.compare(choices.compiler, value)
    if drew or (not compared and _differ(value, evaluate())):
        raise NondeterminismError(
            "the loss (or velocity) drew random numbers, or gave two results for the same"
            " arguments. Replayed steps and Hessian-vector products would see other numbers: call"
            " module.eval() to switch dropout off, draw the numbers beforehand and pass them in"
            " the batch, or give each step its own numbers with Stream.constant(batch, seed=0)."
        )


def _watch(choices: Choices, problem: Problem) -> LossWatch | None:
    """What looks at each operation, in the first call with inputs of these shapes."""
    kind = _kind(problem)
    if kind in choices.watched:
        return None
    check_not_scripted(choices.field)
    choices.watched.add(kind)
    return LossWatch()


def _kind(problem: Problem) -> object:
    return tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in problem.tensors())


class _Evaluation:
    """The velocity at the start, or the first update, with the random numbers of step 0."""

    def __init__(self, inner: InnerOptimizer, problem: Problem) -> None:
        self._dynamics = bind(inner, problem.layout)
        self._seed = None if problem.stream is None else problem.stream.step_seed(0)
        self._args = _first_task(problem)
        self._t_end = problem.grid.times.detach().reshape(-1, problem.grid.steps + 1)[0, -1]
        self._hidden = inside_transform(problem.tensors())
        self._field = inner

    def __call__(self) -> Tensor:
        return self._seeded(*self._args)

    def check_linearizes(self) -> None:
        """Raise `CompatibilityError` if it leaves torch, as a transform around it notices."""
        t, lr, y, theta, data = self._args

        def value(y: Tensor) -> Tensor:
            return self._seeded(t, lr, y, theta, data)

        torch.func.vjp(value, y)

    def at_end(self, y: Tensor) -> Tensor:
        """The same at the end of the grid."""
        _, lr, _, theta, data = self._args
        return self._evaluate(self._t_end, lr, y, theta, data)

    def draws(self) -> bool:
        """Whether it draws random numbers that no seed fixes."""
        if self._seed is not None:
            return False
        with torch.enable_grad(), LossWatch() as watch:
            self._evaluate(*self._args)
        return watch.random

    def compare(self, compiler: Compiler, value: Tensor) -> bool:
        """Whether it was compared with what was recorded in an earlier call.

        Raises:
            CompilationError: it differs, so that compiled kernels are out of date.
        """
        if self._seed is not None or self._hidden:
            return False
        key = self._dynamics.layout, self._field.captured()
        return compiler.check_unchanged(key, self._evaluate, self._args, value)

    def _seeded(self, t: Tensor, lr: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        with nullcontext() if self._seed is None else seeded(self._seed, y.device):
            return self._evaluate(t, lr, y, theta, data)

    @evaluation()
    def _evaluate(self, t: Tensor, lr: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        with transforms_only():
            if isinstance(self._dynamics, BoundRule):
                return self._dynamics.update(torch.zeros_like(t), lr, y, theta, data)
            return self._dynamics.velocity(t, y, theta, data)


def ends_of_velocity(choices: Choices, problem: Problem, y_end: Tensor) -> Tensor | None:
    """The velocity of the first task at both ends of a solve, to be compared with a later one.

    Adjoints that evaluate velocities between the steps do not meet the steps themselves, so that
    nothing else would tell that the loss has changed since the solve. None for other adjoints,
    where there is no step or `Safety.probe` is off, and where a transform hides values. Shape
    [2, d].
    """
    wanted = choices.adjoint.needs_velocity and choices.safety.probe and problem.grid.steps > 0
    if not wanted or inside_transform([*problem.tensors(), y_end]):
        return None
    first = _Evaluation(choices.field, problem)
    end = y_end if problem.tasks is None else y_end[0]
    with torch.no_grad():
        return torch.stack([first(), first.at_end(end)])


def check_ends(before: Tensor | None, choices: Choices, problem: Problem, y_end: Tensor) -> None:
    """Raise `NondeterminismError` if the velocity at the ends of a solve is another one now."""
    now = None if before is None else ends_of_velocity(choices, problem, y_end)
    if before is not None and now is not None and _differ(before, now):
        raise NondeterminismError(
            "the velocity is not what it was in the forward sweep: something that the loss uses"
            " has changed since the solve (a number or tensor that it captures, an attribute of a"
            " module). Pass what changes in hparams or in the batch, and change it after"
            " backward()."
        )


def probe_init(field: InnerOptimizer, params: PyTree, hparams: PyTree) -> None:
    """Evaluate `field.init` with every input detached.

    Raises:
        CapturedTensorError: if a result requires grad nevertheless.
    """
    detached = [tree.map_tensors(Tensor.detach, value) for value in (params, hparams)]
    with torch.enable_grad():
        refuse_captured(field.init(*detached))


def refuse_captured(start: PyTree) -> None:
    """Raise `CapturedTensorError` if what `field.init` made of detached inputs requires grad."""
    if any_requires_grad(start):
        raise CapturedTensorError(CAPTURED.format(what="the initial state or the centre"))


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two results differ by more than rounding (some CUDA kernels round at random)."""
    try:
        missing, zero = first.isnan() & second.isnan(), torch.zeros_like(first)
        size = torch.linalg.vector_norm(torch.where(missing, zero, first))
        gap = torch.linalg.vector_norm(torch.where(missing, zero, first - second))
        return bool(~(gap <= torch.finfo(first.dtype).eps ** 0.5 * size) & (first != second).any())
    except RuntimeError:  # inside torch.func.vmap values are hidden
        return False


def _first_task(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Theta, Data]:
    problem = problem.detach()
    grid, theta, data, y = problem.grid, problem.theta, problem.data, problem.y0
    start, lr = grid.times[..., 0], grid.dt[..., 0]
    if problem.tasks is not None:
        start, lr, y = start[0], lr[0], y[0]
        theta, data = theta.of_task(0), data.of_task(0)
    return start.to(y.dtype), lr.to(y.dtype), y, theta, data
