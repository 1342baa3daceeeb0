"""`value_and_grad` with the tasks of a batch spread over workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from odeopt.engine.problem import count_tasks, start
from odeopt.errors import CompatibilityError, InputError
from odeopt.gradient.result import Grads, Result
from odeopt.gradient.value_and_grad import ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.inner.stream import Stream
from odeopt.outer.workers.agreement import Settings, first_batches
from odeopt.outer.workers.merging import Part, agreed, merge
from odeopt.outer.workers.share import Share
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
    if not call.tasks or call.estimates_errors:
        raise CompatibilityError(
            f"spread got value_and_grad with tasks={call.tasks} and"
            f" estimate_error={call.estimates_errors}; expected tasks=True, and errors estimated in"
            " one process."
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
        self._settings = Settings(_settings(call))

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
        inputs = _Inputs(self.call, params, batch, grid, outer_batch, hparams, state)
        if self.workers.count == 1:
            return inputs.result()
        workers, what = self.workers, "value_and_grad"
        tasks = agreed(workers, what, self._settings, inputs.parts(), inputs.count)
        device = tree.tensors((params, hparams))[0].device
        return _result(merge(workers, what, tasks, lambda share: _part(inputs, share), device))


def _settings(call: ValueAndGrad) -> dict[str, Any]:
    """What a call was made with; where a tier keeps its states is each worker's own business."""
    choices = call.choices
    return {
        "the inner optimizer": choices.field,
        "the solver": choices.solver,
        "the adjoint": choices.adjoint,
        "the checkpoints": choices.checkpoints,
        "the safety limits": choices.safety,
        "the compilation": choices.compiler,
        "the outer loss": call.outer,
        "the event": call.stop,
        "on_failure": call.on_failure,
    }


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The arguments of a call."""

    call: ValueAndGrad
    params: PyTree
    batch: PyTree
    grid: TimeGrid
    outer_batch: PyTree
    hparams: PyTree
    state: PyTree

    def result(self) -> Result:
        """The call itself."""
        return self.call(
            self.params, self.batch, self.grid, self.outer_batch, self.hparams, self.state
        )

    def parts(self) -> dict[str, Any]:
        """What every worker must be given alike, by name."""
        return {
            "params and hparams": (self.params, self.hparams, self.state),
            "the batch": (first_batches(self.batch), self.outer_batch),
            "the grid": self.grid,
        }

    def count(self) -> int:
        """The number of tasks."""
        batch = tree.pytree.tree_map(_first, self.batch)
        if not isinstance(self.grid, TimeGrid):  # pyright: ignore
            raise InputError(f"grid is {self.grid!r}; expected a TimeGrid.")
        return count_tasks(batch, self.grid, self._lead())

    def take(self, share: Share) -> _Inputs:
        """The arguments for some of the tasks."""
        stop, state = self.call.stop, self.state
        if stop is not None:
            stop = replace(stop, batch=share.take(stop.batch, "StopWhen.batch"))
        if self._lead() is not None:
            state = share.take(state, "state")
        return _Inputs(
            replace(self.call, stop=stop),
            self.params,
            share.take(self.batch, "batch"),
            self.grid.rows(share.first, share.stop),
            share.take(self.outer_batch, "outer_batch"),
            self.hparams,
            state,
        )

    def _lead(self) -> int | None:
        """The number of warm states, if there is one per task."""
        if self.state is None:
            return None
        field = self.call.choices.field
        first = start(field, self.params, self.hparams, tree.is_differentiable, self.state).y0
        return first.shape[0] if first.ndim == 2 else None


def _first(leaf: object) -> object:
    return leaf(0) if isinstance(leaf, Stream) else leaf


def _part(inputs: _Inputs, share: Share) -> Part:
    res = inputs.take(share).result()
    means = {"value": res.value, "params": res.grads.params, "hparams": res.grads.hparams}
    rows = {
        "values": res.values, "status": res.status, "dt": res.grads.dt, "batch": res.grads.batch,
        "aux": res.aux, "diagnostics": dict(res.diagnostics),
    }  # fmt: skip
    return Part(means, rows, res.stats)


def _result(found: Part) -> Result:
    means, rows, stats = found
    grads = Grads(means["params"], means["hparams"], rows["dt"], rows["batch"])
    return Result(
        means["value"], rows["values"], grads, rows["status"], stats, rows["aux"],
        rows["diagnostics"],
    )  # fmt: skip
