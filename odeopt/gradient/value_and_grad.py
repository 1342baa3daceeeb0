"""The functional path: value and gradient without a graph (steps 1 to 5 of the design)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Swept
from odeopt.engine.choices import Choices
from odeopt.engine.problem import Problem, Start, assemble, check_arrays, check_lead, start
from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import Refinement
from odeopt.errors import CompatibilityError, InputError, SecondOrderError
from odeopt.gradient.event import Stopping, StopWhen
from odeopt.gradient.outer_loss import OuterGradients, OuterKernel, OuterLoss
from odeopt.gradient.probe import known, note_known, probe, refuse_captured
from odeopt.gradient.result import Grads, Result
from odeopt.gradient.solved import Solved, theta_gradients
from odeopt.grid import TimeGrid
from odeopt.inner.base import InnerOptimizer
from odeopt.tools import tree
from odeopt.tools.eagerly import eagerly
from odeopt.tools.shown import Shown, shown
from odeopt.tools.transforms import (
    check_not_in_forward_mode,
    inside_gradient_transform,
    inside_transform,
    requires_grad,
)
from odeopt.tools.types import PyTree, Tensors

OnFailure = Literal["raise", "skip"]


def check_on_failure(value: object) -> None:
    """Raise `InputError` unless the value is "raise" or "skip"."""
    if value not in ("raise", "skip"):
        raise InputError(f"on_failure is {shown(value)}; expected 'raise' or 'skip'.")


@dataclass(frozen=True)
class ValueAndGrad(Shown):
    """`opt.value_and_grad(outer_loss)`, ready to be called."""

    choices: Choices
    outer: OuterLoss
    tasks: bool
    on_failure: OnFailure
    stop: StopWhen | None = None

    @override
    def _shown(self) -> Iterator[str]:
        yield from self.choices.parts()
        yield f"outer_loss={shown(self.outer.loss)}"
        settings = {
            "tasks": self.tasks, "on_failure": self.on_failure, "has_aux": self.outer.has_aux,
            "stop": self.stop, "estimate_error": self.estimates_errors, "many": self.outer.many,
        }  # fmt: skip
        yield from (f"{n}={shown(v)}" for n, v in settings.items() if v and v != "raise")

    @property
    def estimates_errors(self) -> bool:
        """Whether results say how far they are from the flow's."""
        return False

    @property
    def depends_on_company(self) -> bool:
        """Whether the result of a task depends on which others are in the batch."""
        return False

    @eagerly
    def __call__(
        self,
        params: PyTree,
        batch: PyTree,
        grid: TimeGrid,
        outer_batch: PyTree,
        hparams: PyTree = None,
        state: PyTree = None,
    ) -> Result:
        """The outer loss after the solve, and its gradients.

        Args:
            params: a pytree of float tensors, where the inner optimisation begins.
            batch: the training data, or a `Stream` of them; with tasks each tensor has a leading
                task dimension.
            grid: the steps; for an update rule, the learning rates.
            outer_batch: the validation data; with tasks likewise.
            hparams: a pytree; losses get it as their third argument if it is not None.
            state: an initial state in place of the field's own (a warm start); no gradient.

        Raises:
            OdeoptError: see `odeopt.errors`; each message says what to do.
        """
        return self.counted(Stats(), params, batch, grid, outer_batch, hparams, state)

    def counted(
        self, stats: Stats, params: PyTree, batch: PyTree, grid: TimeGrid, outer_batch: PyTree,
        hparams: PyTree = None, state: PyTree = None,
    ) -> Result:  # fmt: skip
        """The same; the cost is added to `stats`, that of a call which fails as well."""
        call = self.begun(stats, params, batch, grid, outer_batch, hparams, state)
        return call.run(self.choices, stats)

    def begun(
        self, stats: Stats, params: PyTree, batch: PyTree, grid: TimeGrid, outer_batch: PyTree,
        hparams: PyTree, state: PyTree,
    ) -> Call:  # fmt: skip
        """A call whose arguments have been checked and put together; nothing is solved yet."""
        check_arrays(batch, "batch")
        check_arrays(outer_batch, "outer_batch")
        times = (grid.times, grid.dt) if isinstance(grid, TimeGrid) else ()  # pyright: ignore
        _refuse_transforms((params, hparams, batch, outer_batch, state, times))
        begin = Beginning(self.choices.field, params, hparams, state)
        with torch.no_grad():
            problem = begin.problem(batch, grid, self.tasks)
            if self.tasks and problem.tasks is not None:
                check_lead(outer_batch, problem.tasks, "outer_batch")
            stopping = None
            if self.stop is not None:
                args = (begin.hparams_tree, begin.hparams)
                stopping = Stopping(self.stop, self.choices, problem, batch, *args, stats)
            return Call(self, problem, begin, outer_batch, stopping)


class Beginning:
    """Where a solve begins, as a differentiable function of params and hparams."""

    def __init__(
        self, field: InnerOptimizer, params: PyTree, hparams: PyTree, state: PyTree
    ) -> None:
        self._field, self._state = field, _detach(state)
        tree.ravel(params, "params")  # checks it
        self.params_layout, self._params, _ = tree.partition(_detach(params))
        self.hparams_layout, self.hparams, self._constants = tree.partition(_detach(hparams))

    def problem(self, batch: PyTree, grid: TimeGrid, tasks: bool) -> Problem:
        """The detached problem; keeps the pullback through `field.init`, which is called once.

        Raises:
            CapturedTensorError: if the initial state requires grad, though no argument does.
        """
        starts: list[Start] = []

        def flat(params: Tensors, hparams: Tensors) -> tuple[tuple[Tensor, Tensors], Tensors]:
            trees = self.params_layout.merge(params, ()), self.hparams_tree(hparams)
            begin = start(self._field, *trees, tree.is_differentiable, self._state)
            starts.append(begin)
            return (begin.y0, begin.diff), begin.data

        with torch.enable_grad():
            linearized: Any = torch.func.vjp(flat, self._params, self.hparams, has_aux=True)
        (y0, diff), self._pullback, data = linearized
        refuse_captured((y0, diff, data))
        begin = replace(starts[0], y0=y0, diff=diff, data=data)  # out of the transform
        return assemble(begin, batch, grid, tasks, requires_grad).detach()

    def hparams_tree(self, diff: Tensors) -> PyTree:
        """Hparams with other differentiable leaves."""
        return self.hparams_layout.merge(diff, self._constants)

    def pull(self, g_y0: Tensor, g_shared: Tensors) -> tuple[Tensors, Tensors]:
        """Gradients w.r.t. the leaves of params and hparams."""
        return self._pullback((g_y0, g_shared))


def _detach(value: PyTree) -> PyTree:
    return tree.map_tensors(Tensor.detach, value)


class Call:
    """One call of `value_and_grad`.

    Attributes:
        solved: the solve of the last `run`.
    """

    solved: Solved

    def __init__(
        self, owner: ValueAndGrad, problem: Problem, begin: Beginning, outer_batch: PyTree,
        stopping: Stopping | None,
    ) -> None:  # fmt: skip
        self._owner, self._begin, self._stopping = owner, begin, stopping
        self._problem = problem if stopping is None else stopping.problem
        self._outer_batch = _detach(outer_batch)

    def over(self, problem: Problem) -> Call:
        """The same call over another grid, whose problem has been put together."""
        return Call(self._owner, problem, self._begin, self._outer_batch, None)

    @torch.no_grad()
    def run(self, choices: Choices, stats: Stats, refinement: Refinement | None = None) -> Result:
        """Both sweeps, with steps that are known already if given; the cost is added to `stats`."""
        owner, problem = self._owner, self._problem
        probing = choices.safety.probe
        is_known = probing and known(choices, problem)
        if probing and not is_known:
            probe(choices, problem)
        skips = owner.on_failure == "skip"
        self.solved = Solved.forward(choices, problem, stats, skips, refinement)
        tape = self.solved.run.kernels.tape
        sound = tape is not None and tape.sound
        if is_known and not sound:
            probe(choices, problem)  # something drew random numbers: was it the loss?
        with self.solved.run.trajectory.kept:
            result = self._go_back(self.solved, stats)
        if probing and sound and not is_known:
            note_known(choices, problem)
        return result

    def _go_back(self, solved: Solved, stats: Stats) -> Result:
        """From the final state to the gradients."""
        solved.check_some()
        owner, problem, begin = self._owner, self._problem, self._begin
        differentiate_outer = OuterKernel(
            owner.outer, owner.choices.field, problem.layout.state, begin.hparams_tree,
            problem.tasks, observing=bool(problem.grid.observe),
        )  # fmt: skip
        outer = differentiate_outer(solved.states, self._outer_batch, begin.hparams)
        solved.note(~torch.isfinite(outer.values), Status.VALUE_NOT_FINITE)
        gradients = [*outer.states, *outer.hparams]
        solved.note_infinite(gradients, Status.OUTER_GRADIENT_NOT_FINITE, owner.outer.lead)
        solved.check_some(outer.values)
        if self._stopping is not None:
            outer = self._stopping.correct(outer)
        swept = solved.pull(*solved.seeds(outer.states), stats, owner.outer.chunk_size)
        solved.check_some(outer.values)
        return self._result(outer, swept, solved.status, stats)

    def _result(self, outer: OuterGradients, swept: Swept, status: Tensor, stats: Stats) -> Result:
        problem, begin, stopping = self._problem, self._begin, self._stopping
        ok, lead = status == Status.OK, self._owner.outer.lead

        def mean(x: Tensor) -> Tensor:
            """Over tasks that did not fail; the identity without tasks."""
            if problem.tasks is None:
                return x
            return tree.zero_unless(ok, x, lead).sum(lead) / ok.sum()

        theta = theta_gradients(problem, swept, mean)
        pull = torch.func.vmap(begin.pull) if lead else begin.pull
        g_params, g_path = pull(mean(swept.lam), theta.shared)
        g_hparams = [mean(g) + path for g, path in zip(outer.hparams, g_path, strict=True)]
        later = swept.t.flip(-1).cumsum(-1).flip(-1) - swept.t
        g_dt = swept.dt + later
        grads = Grads(
            begin.params_layout.gradients(g_params),
            begin.hparams_layout.gradients(g_hparams),
            g_dt if stopping is None else stopping.keep_made(g_dt),
            problem.layout.batch.gradients(list(theta.batch)) if theta.batch else None,
        )
        values = None if problem.tasks is None else outer.values
        aux = outer.aux if self._owner.outer.has_aux else None
        reports = dict(swept.reports) | ({} if stopping is None else stopping.report())
        return Result(mean(outer.values), values, grads, status, stats, aux, reports)


def _refuse_transforms(inputs: PyTree) -> None:
    """A gradient transform around this path would see constants: refuse it by name."""
    check_not_in_forward_mode(inputs, "value_and_grad")
    if inside_gradient_transform(inputs):
        raise SecondOrderError(
            "value_and_grad was called inside torch.func.grad, vjp or jvp: its results carry no"
            " derivative. Differentiate opt.solve(...) instead; second derivatives through a solve"
            " are not supported."
        )
    if inside_transform(tree.tensors(inputs)):
        raise CompatibilityError(
            "value_and_grad was called inside torch.func.vmap, which hides the numbers that it"
            " checks. Pass all tasks at once, their batches along the first dimension, with"
            " opt.value_and_grad(outer_loss, tasks=True); or map opt.solve(...), which may be."
        )
