"""`value_and_grad` and methods with the tasks of a batch spread over workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.problem import count_tasks, start
from odeopt.errors import CompatibilityError
from odeopt.gradient.result import Grads, Result
from odeopt.gradient.value_and_grad import ValueAndGrad
from odeopt.grid import TimeGrid, check_grid
from odeopt.inner.stream import Stream
from odeopt.outer.method import MetaGradient, MetaGrads, Method, TaskBatch, TaskData, as_task_batch
from odeopt.outer.workers.agreement import Settings, first_batches
from odeopt.outer.workers.merging import Part, Share, agreed, merge
from odeopt.outer.workers.workers import Workers
from odeopt.tools import tree
from odeopt.tools.eagerly import eagerly
from odeopt.tools.types import PyTree


def spread(call: ValueAndGrad, workers: Workers) -> SpreadValueAndGrad:
    r"""The same function with its tasks divided among workers, each of which gets all results.

    $\frac1B\sum_n g_n = \sum_r \frac{B_r}{B} g^{(r)}$ with the mean $g^{(r)}$ over those $B_r$ of
    worker r's tasks that did not fail: the numbers of one process up to rounding, and the same bits
    on each worker. Solvers whose steps the tasks of a batch share (`DormandPrince`) take other
    steps for fewer tasks and agree to their tolerance. Every worker calls it with the same
    arguments, the whole batch. Cost: that of a worker's own tasks, and the exchange of as many
    bytes as the gradients have.

    Example:
        >>> import torch, odeopt
        >>> loss = lambda params, batch: ((params - batch) ** 2).sum()
        >>> opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
        >>> with odeopt.Workers() as workers:
        ...     call = odeopt.spread(opt.value_and_grad(loss, tasks=True), workers)
        ...     grid = odeopt.TimeGrid.from_lr(lr=0.1, steps=10)
        ...     res = call(torch.zeros(2), torch.ones(4, 2), grid, torch.ones(4, 2))
        >>> [round(g, 4) for g in res.grads.params.tolist()]
        [-0.0231, -0.0231]

    Args:
        call: what `opt.value_and_grad(outer_loss, tasks=True)` returned.
        workers: who takes part.

    Raises:
        CompatibilityError: if the function has no tasks, estimates errors or chooses its own
            solver.
        OdeoptError: in a call, as the function does, on every worker.
        WorkerError: in a call, if a worker is lost, was given other arguments, or has made the
            function with other settings; this is compared before anything is computed.
    """
    if not hasattr(call, "depends_on_company"):
        raise CompatibilityError(
            f"spread got a {type(call).__name__}; expected opt.value_and_grad(outer_loss,"
            " tasks=True) of an ODEOptimizer."
        )
    if call.depends_on_company:
        raise CompatibilityError(
            f"spread got a {type(call).__name__}, which chooses its steps by the tasks that it"
            " sees; they differ from worker to worker. Use the choices that it describes."
        )
    if not call.tasks or call.estimates_errors or call.outer.many:
        raise CompatibilityError(
            f"spread got value_and_grad with tasks={call.tasks},"
            f" estimate_error={call.estimates_errors} and many={call.outer.many}; expected"
            " tasks=True, and errors estimated, or many losses differentiated, in one process."
        )
    return SpreadValueAndGrad(call, workers)


@final
class SpreadValueAndGrad:
    """What `spread` returns.

    Attributes:
        call: the function of one process.
        workers: who takes part.
    """

    def __init__(self, call: ValueAndGrad, workers: Workers) -> None:
        self.call, self.workers = call, workers
        choices = call.choices
        # where a tier keeps its states is each worker's own business
        self._settings = Settings({
            "the inner optimizer": choices.field,
            "the solver": choices.solver,
            "the adjoint": choices.adjoint,
            "the checkpoints": choices.checkpoints,
            "the safety limits": choices.safety,
            "the compilation": choices.compiler,
            "the outer loss": call.outer,
            "the event": call.stop,
            "on_failure": call.on_failure,
        })  # fmt: skip

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
        """As `ValueAndGrad`; `stats` are those of the worker with the most, bytes of all."""
        call, workers = self.call, self.workers
        if workers.count == 1:
            return call(params, batch, grid, outer_batch, hparams, state)

        def lead() -> int | None:
            """The number of warm states, if there is one per task."""
            if state is None:
                return None
            y0 = start(call.choices.field, params, hparams, tree.is_differentiable, state).y0
            return y0.shape[0] if y0.ndim == 2 else None

        def count() -> int:
            first = tree.pytree.tree_map(
                lambda leaf: leaf(0) if isinstance(leaf, Stream) else leaf, batch
            )
            return count_tasks(first, check_grid(grid), lead())

        def compute(share: Share) -> Part:
            stop = call.stop
            if stop is not None:
                stop = replace(stop, batch=share.take(stop.batch, "StopWhen.batch"))
            own_state = state if lead() is None else share.take(state, "state")
            res = replace(call, stop=stop)(
                params, share.take(batch, "batch"), grid.rows(share.first, share.stop),
                share.take(outer_batch, "outer_batch"), hparams, own_state,
            )  # fmt: skip
            return _part(res, dt=res.grads.dt, batch=res.grads.batch, aux=res.aux)

        what, device = "value_and_grad", tree.tensors((params, hparams))[0].device
        arguments = {
            "params and hparams": (params, hparams, state),
            "the batch": (first_batches(batch), outer_batch),
            "the grid": grid,
        }
        tasks = agreed(workers, what, self._settings, arguments, count)
        means, rows, stats = merge(workers, what, tasks, compute, device)
        grads = Grads(means["params"], means["hparams"], rows["dt"], rows["batch"])
        return Result(
            means["value"], rows["values"], grads, rows["status"], stats, rows["aux"],
            rows["diagnostics"],
        )  # fmt: skip


def _part(res: Result | MetaGradient, **rows: PyTree) -> Part:
    """What some tasks gave; `rows` are those that only one kind of result has."""
    means = {"value": res.value, "params": res.grads.params, "hparams": res.grads.hparams}
    common = {"values": res.values, "status": res.status, "diagnostics": dict(res.diagnostics)}
    return Part(means, common | rows, res.stats)


@final
class SpreadMethod(Method):
    """The same method; `__call__` and `evaluate` are made by all workers together.

    Args:
        method: a method whose results are means over tasks, as `Method` says.
        workers: who takes part.
    """

    def __init__(self, method: Method, workers: Workers) -> None:
        self._method, self._workers = method, workers
        self._settings = Settings({"the method": method})

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        batch = as_task_batch(task_batch)
        if self._workers.count == 1:
            return self._method(params, batch, hparams)

        def compute(share: Share) -> Part:
            return _part(self._method(params, _tasks_of(share, batch), hparams))

        what, device = "a meta-gradient", tree.tensors((params, hparams))[0].device
        tasks = self._agreed(what, params, batch, hparams)
        means, rows, stats = merge(self._workers, what, tasks, compute, device)
        grads = MetaGrads(means["params"], means["hparams"])
        return MetaGradient(
            means["value"], grads, stats, rows["values"], rows["status"], rows["diagnostics"]
        )

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        return self._method.adapt(params, train, hparams)

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        batch, workers = as_task_batch(task_batch), self._workers
        if workers.count == 1:
            return self._method.evaluate(params, batch, hparams)

        tasks = self._agreed("an evaluation", params, batch, hparams)
        share = Share.of(workers.rank, workers.count, tasks)

        def own() -> Tensor | None:
            if share.tasks == 0:
                return None
            return self._method.evaluate(params, _tasks_of(share, batch), hparams).cpu()

        parts = workers.gather("an evaluation", own)
        values = torch.cat([part for part in parts if part is not None])
        return values.to(tree.tensors(params)[0].device)

    def _agreed(self, what: str, params: PyTree, batch: TaskBatch, hparams: PyTree) -> int:
        """The number of tasks, once all that decides the result is the same on every worker."""
        data = batch.train, batch.validation
        arguments: dict[str, Any] = {
            "params and hparams": (params, hparams),
            "the tasks": first_batches(data),
        }
        no_grid = TimeGrid.uniform(0.0, 0)
        return agreed(
            self._workers, what, self._settings, arguments, lambda: count_tasks(data, no_grid, None)
        )


def _tasks_of(share: Share, batch: TaskBatch) -> TaskBatch:
    return TaskBatch(
        share.take(batch.train, "train"),
        share.take(batch.validation, "validation"),
        batch.names[share.first : share.stop],
    )
