"""`ODEOptimizer`: a field, a solver, an adjoint and checkpoints put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from odeopt.adjoint.base import Adjoint, LocalAdjoint
from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.checkpoint.graphs import Graphs
from odeopt.checkpoint.uniform import Every
from odeopt.engine.choices import Choices
from odeopt.engine.compile.compiler import Compiler
from odeopt.engine.problem import assemble, check_arrays, start
from odeopt.engine.safety import Safety
from odeopt.errors import InputError
from odeopt.gradient.autograd import is_tracked, solve
from odeopt.gradient.error_estimate import EstimatedValueAndGrad, check_estimable
from odeopt.gradient.event import StopWhen
from odeopt.gradient.outer_loss import make_outer_loss
from odeopt.gradient.probe import probe, probe_init
from odeopt.gradient.result import Solution
from odeopt.gradient.value_and_grad import OnFailure, ValueAndGrad, check_on_failure
from odeopt.grid import TimeGrid
from odeopt.inner.base import InnerOptimizer
from odeopt.inner.field import as_field
from odeopt.inner.rule import UpdateRule
from odeopt.solver.base import RuleSteps, Solver
from odeopt.solver.runge_kutta import Euler
from odeopt.tools import tree
from odeopt.tools.eagerly import eagerly
from odeopt.tools.shown import Shown, shown
from odeopt.tools.transforms import check_not_in_forward_mode, requires_grad
from odeopt.tools.types import PyTree


class ODEOptimizer(Shown):
    r"""An inner optimiser, run forward and differentiated backward.

    It is a flow $y' = f(t, y)$, put through a solver, or an update rule such as Adam.

    Examples:
        >>> import torch, odeopt
        >>> loss = lambda params, batch: ((params - batch) ** 2).sum()
        >>> opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
        >>> grid = odeopt.TimeGrid.from_lr(lr=0.1, steps=10)
        >>> res = opt.value_and_grad(loss)(torch.zeros(2), torch.ones(2), grid, torch.ones(2))
        >>> [round(g, 4) for g in res.grads.params.tolist()]
        [-0.0231, -0.0231]

    Args:
        field: a `Field`, an `UpdateRule`, or a function
            `velocity(t, state, consts, hparams, batch)`.
        solver: how a field is run forward; `Euler()` by default, which on gradient flow is
            gradient descent. An update rule takes none.
        adjoint: how it is differentiated; `DiscreteAdjoint()`, the exact gradient, by default.
        checkpoints: what is kept in between; by default `Graphs()`, as much as memory allows,
            with an adjoint that differentiates the steps as they were made, else `Every(1)`.
        safety: limits beyond which a gradient is refused.
        compile: None; or a name in `BACKENDS`: "trace" runs the kernels as recorded graphs,
            "inductor" compiles those graphs, which takes seconds per kernel, once per shape, and
            needs a C++ compiler, "inductor-cpu" does so for small networks on a CPU; or a
            `Compiler` that several optimisers share. Inside `torch.func` transforms kernels run
            eagerly.

    Raises:
        CompatibilityError: if two choices do not work together.
    """

    def __init__(
        self,
        field: InnerOptimizer | Callable[..., PyTree],
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        checkpoints: CheckpointSchedule | None = None,
        safety: Safety | None = None,
        compile: str | Compiler | None = None,
    ) -> None:
        inner = as_field(field)
        makes_steps = isinstance(inner, UpdateRule)
        default = partial(RuleSteps, inner.pull_gradients) if makes_steps else Euler
        chosen: Adjoint = _instance(adjoint, Adjoint, "adjoint", DiscreteAdjoint)
        kept = Graphs if isinstance(chosen, LocalAdjoint) and chosen.pulls_steps else Every
        if compile is not None and not isinstance(compile, str | Compiler):  # pyright: ignore
            raise InputError(
                f"compile is {shown(compile)}; expected None, or a name in BACKENDS such as"
                ' "inductor".'
            )
        self._choices = Choices(
            inner,
            _instance(solver, Solver, "solver", default),
            chosen,
            _instance(checkpoints, CheckpointSchedule, "checkpoints", kept),
            _instance(safety, Safety, "safety", Safety),
            Compiler(compile) if isinstance(compile, str) else compile,
        )
        self._choices.check()

    @override
    def _shown(self) -> Iterable[str]:
        return self._choices.parts()

    @property
    def field(self) -> InnerOptimizer:
        """The inner optimiser."""
        return self._choices.field

    def value_and_grad(
        self,
        outer_loss: Callable[..., Any],
        tasks: bool = False,
        on_failure: OnFailure = "raise",
        has_aux: bool = False,
        stop: StopWhen | None = None,
        estimate_error: bool = False,
        many: bool = False,
        chunk_size: int | None = None,
    ) -> ValueAndGrad:
        """A function `(params, batch, grid, outer_batch, hparams=None, state=None) -> Result`.

        No autograd graph is made, and each kept state is released as soon as it has been used.

        Args:
            outer_loss: `outer_loss(params, outer_batch)`, or with hparams as a third argument if
                they are not None; a scalar tensor. If the grid observes states it is also called
                with `observed=[state, ...]`.
            tasks: whether batches carry a leading task dimension. The value and the gradients
                w.r.t. params and hparams are then means over tasks.
            on_failure: "raise", or "skip" to leave failed tasks out of the means.
            has_aux: whether outer_loss returns a pair (scalar, tensors); see `Result.aux`.
            stop: None, or an event at which each task stops; the gradient takes the change of
                the stopping time into account, and `Result.diagnostics` says where it was.
            estimate_error: whether to estimate how far the gradient is from that of the flow
                (`Result.error`), with one more solve of half as many steps.
            many: whether outer_loss returns many losses, shape [losses], e.g. one for each
                validation example. The value and all gradients then have a first dimension of
                losses. They share one forward sweep and one replay; each further loss costs less
                than a Hessian-vector product per step, since products are made together.
            chunk_size: how many losses are pulled at once; by default as many as fit into half of
                the memory that is free, or into what `set_memory_budget` says.
        """
        check_on_failure(on_failure)
        outer = make_outer_loss(outer_loss, has_aux, many, chunk_size)
        kind = ValueAndGrad
        if estimate_error:
            check_estimable(self._choices, stop)
            kind = EstimatedValueAndGrad
        return kind(self._choices, outer, tasks, on_failure, stop)

    @eagerly
    def solve(
        self,
        params: PyTree,
        batch: PyTree,
        grid: TimeGrid,
        hparams: PyTree = None,
        tasks: bool = False,
        on_failure: OnFailure = "raise",
        state: PyTree = None,
    ) -> Solution:
        """Run the inner optimisation; the result is differentiable by autograd and torch.func.

        Gradients flow to params, hparams, batch, the tensors that the grid was made from, and
        `state`. Kept states stay alive until the graph is freed; `value_and_grad` needs less.
        Where nothing requires grad, or under `torch.no_grad`, nothing is kept.

        Args:
            params: a pytree of float tensors, where the inner optimisation begins.
            batch: the training data, or a `Stream` of them; with tasks each tensor has a leading
                task dimension.
            grid: the steps; for an update rule, the learning rates.
            hparams: a pytree; losses get it as their third argument if it is not None.
            tasks: whether the batch carries a leading task dimension.
            on_failure: "raise", or "skip" to only report failed tasks in `status`.
            state: an initial state in place of the field's own (a warm start). An update rule
                counts its steps from 0 again: Adam corrects the bias of its moments anew, and a
                `Stream` begins with its first batch.

        Raises:
            OdeoptError: see `odeopt.errors`; each message says what to do.
        """
        check_on_failure(on_failure)
        check_arrays(batch, "batch")
        tree.ravel(params, "params")  # checks it
        probe_init(self._choices.field, params, hparams)
        begin = start(self._choices.field, params, hparams, requires_grad, state)
        problem = assemble(begin, batch, grid, tasks, requires_grad)
        check_not_in_forward_mode(problem.tensors(), "solve")
        tracked = is_tracked(problem)
        if tracked:
            self._choices.check_autograd()
        if self._choices.safety.probe:
            with torch.no_grad():
                probe(self._choices, problem)
        solved = solve(self._choices, problem, on_failure == "skip", tracked)
        *observed, final = map(problem.layout.state.unflatten, solved.states)
        params = self._choices.field.readout(final)
        status = solved.status if solved.visible else None
        return Solution(params, final, observed, status, solved.run.kernels.stats)


def _instance(value: Any, kind: type[Any], what: str, default: Callable[[], Any]) -> Any:
    if value is None:
        return default()
    if not isinstance(value, kind):
        hint = f"; did you mean {value.__name__}()?" if isinstance(value, type) else ""
        raise InputError(f"{what} is {shown(value)}; expected an instance of {kind.__name__}{hint}")
    return value
