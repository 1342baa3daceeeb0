"""Meta-learning: an initialisation, and what else a method learns, over batches of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from odeopt.engine.safety import Status
from odeopt.errors import InputError
from odeopt.inner.module import ModuleLoss, from_module
from odeopt.outer.method import Method, TaskBatch, TaskData, as_task_batch
from odeopt.outer.metrics import Step
from odeopt.outer.outer_loop import OuterGradient, OuterLoop, OuterObjective
from odeopt.outer.workers import Workers
from odeopt.outer.workers.spreading import SpreadMethod
from odeopt.registry import METHODS
from odeopt.tools.keywords import keywords_of
from odeopt.tools.shown import Shown, shown
from odeopt.tools.types import Loss, PyTree

Tasks = Callable[[int], TaskData]
"""`tasks(k)` is the meta-batch of update k, the same whenever it is asked for."""


@final
class MetaLearner(Shown):
    r"""Learns an initialisation over meta-batches of tasks.

    $\theta \leftarrow \mathrm{Adam}(\theta, \tfrac1B\sum_n \partial J_n/\partial\theta)$, and the
    same for hparams. It stops after a number of updates or when $\theta$ hardly moves
    (Algorithm 1 of the paper).

    Examples:
        >>> import torch, odeopt
        >>> loss = lambda params, batch: ((params - batch) ** 2).sum()
        >>> pool = odeopt.TaskPool(torch.randn(20, 3), torch.randn(20, 3))
        >>> learner = odeopt.MetaLearner("maml", torch.zeros(3), pool, loss=loss)
        >>> len(learner.fit(10))
        10

    Args:
        method: a `Method`, or the name of one in `METHODS`, which is then built for the loss with
            `settings`.
        model: a module, a pytree of initial parameters, or a `ModuleLoss`, as `from_module` makes
            it. A module is not changed.
        tasks: `tasks(k)`, the meta-batch of update k, e.g. a `TaskPool`.
        optimizer: makes the outer optimiser from a list of tensors; Adam, 1e-3, by default.
        loss: with a module `objective(model, batch)`, with parameters `loss(params, batch)`; not
            with a `ModuleLoss` or a `Method`, which have their own.
        settings: keywords for a method given by name, e.g. `{"lr": 0.01, "steps": 500}`.
        hparams: initial hparams, in place of the method's own or the model's.
        schedule: makes a scheduler of `torch.optim.lr_scheduler` from the outer optimiser. It is
            stepped after each update, `ReduceLROnPlateau` after each validation with its value.
        clip: the largest norm of a meta-gradient; longer ones are shortened. None for no limit.
        validation: held-out tasks, evaluated every `validate_every` updates and after the last.
        validate_every: see `validation`.
        callback: called with a `Step` after each update.
        folder: where `checkpoint.pt` and `metrics.jsonl` go; None to write nothing. One learner
            at a time runs there. A relative path is looked up now.
        checkpoint_every: updates between two checkpoints; the end of `fit` makes one, too.
        show_progress: whether to show a progress bar, where standard error is a terminal.
        workers: `Workers()` to divide the tasks of each batch among the processes of `torchrun`.
            Every worker makes the same calls, `tasks` and `callback` included; worker 0 writes.
    """

    def __init__(
        self,
        method: Method | str,
        model: nn.Module | ModuleLoss | PyTree,
        tasks: Tasks,
        optimizer: Callable[[list[Tensor]], Optimizer] = torch.optim.Adam,
        *,
        loss: Loss | None = None,
        settings: Mapping[str, Any] | None = None,
        hparams: PyTree = None,
        schedule: Callable[[Any], LRScheduler] | None = None,
        clip: float | None = None,
        validation: TaskData | None = None,
        validate_every: int = 100,
        callback: Callable[[Step], None] | None = None,
        folder: str | Path | None = None,
        checkpoint_every: int = 100,
        show_progress: bool = True,
        workers: Workers | None = None,
    ) -> None:
        self.method, params, own = _method_and_start(method, model, loss, dict(settings or {}))
        if not callable(tasks):
            raise InputError(
                f"tasks is {shown(tasks)}; expected tasks(k) -> TaskBatch, e.g. a TaskPool."
            )
        initial = self.method.init_hparams(params, own) if hparams is None else hparams
        workers = Workers.alone() if workers is None else workers
        held_out = None if validation is None else as_task_batch(validation)
        self._objective = _MetaLoss(self.method, tasks, held_out, workers)
        self._loop = OuterLoop(
            self._objective, {"params": params, "hparams": initial}, optimizer, schedule=schedule,
            clip=clip, validate_every=validate_every, callback=callback, folder=folder,
            checkpoint_every=checkpoint_every, show_progress=show_progress, workers=workers,
        )  # fmt: skip

    @override
    def _shown(self) -> Iterator[str]:
        yield shown(self.method, limit=130)
        yield from self._loop._shown()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    @property
    def params(self) -> PyTree:
        """The initialisation as it is now."""
        return self._loop.learned["params"]

    @property
    def hparams(self) -> PyTree:
        """What else is learned, as it is now."""
        return self._loop.learned["hparams"]

    @property
    def updates(self) -> int:
        """How many updates have been made."""
        return self._loop.updates

    def fit(
        self, updates: int, tolerance: float = 0.0, callback: Callable[[Step], None] | None = None
    ) -> list[Step]:
        r"""Learn until so many updates have been made in all.

        Args:
            updates: the number of updates to reach, those before a `restore` included.
            tolerance: stop when $\lVert\Delta\theta\rVert$ is below this.
            callback: called with each `Step` of this call, after the learner's own.

        Returns:
            The steps made in this call.

        Raises:
            OdeoptError: of the method, with the update and its tasks in a note.
            DivergenceError: if a meta-gradient is not finite.
            InputError: if the folder holds another run, or another learner has gone on with it.
            StorageError: if another learner runs in the folder, or it cannot be written to.
            WorkerError: if a worker is lost, or has other parameters, settings or tasks than the
                others.
        """
        return self._loop.fit(updates, tolerance, callback)

    def adapt(self, train: PyTree) -> PyTree:
        """Parameters adapted to new tasks, each leaf with a leading task dimension."""
        return self.method.adapt(self.params, train, self.hparams)

    def evaluate(self, task_batch: TaskData) -> Tensor:
        """The validation losses of new tasks after adaptation, shape [tasks]."""
        return self._objective.evaluate(self._loop.learned, task_batch)

    def history(self) -> list[Step]:
        """Every step so far, as `metrics.jsonl` has them (read by each worker for itself)."""
        return self._loop.history()

    def save(self) -> None:
        """Write a checkpoint atomically.

        Raises:
            InputError: if the learner has no folder, or that of another run.
            StorageError: if another learner runs in the folder, or it cannot be written to.
            WorkerError: as `fit`.
        """
        self._loop.save()

    def restore(self) -> bool:
        """Go on from the checkpoint in the folder; False if there is none.

        The run that follows is, on a CPU, bit for bit the one that was interrupted; with another
        number of workers it is so up to rounding. Worker 0 reads the file for all.

        Raises:
            InputError: if the checkpoint is that of another run: what is learned, the method, the
                outer optimiser, its schedule, clip or the tasks differ. Objects are compared by
                their attributes when the learner is made, or by what their method `settings()`
                returns; functions by their code. Nothing has been changed then.
            StorageError: if the file is damaged, or another learner runs in the folder.
        """
        return self._loop.restore()


class _MetaLoss(OuterObjective):
    """The mean validation loss of tasks after adaptation."""

    def __init__(
        self, method: Method, tasks: Tasks, validation: TaskBatch | None, workers: Workers
    ) -> None:
        self._method, self._tasks, self._validation = method, tasks, validation
        self._spread = SpreadMethod(method, workers)

    @override
    def draw(self, update: int) -> TaskBatch:
        return as_task_batch(self._tasks(update))

    @override
    def gradient(self, learned: Mapping[str, PyTree], drawn: TaskBatch) -> OuterGradient:
        meta = self._spread(learned["params"], drawn, learned["hparams"])
        codes: list[int] = meta.status.reshape(-1).tolist()
        failed = tuple(
            f"{drawn.names[i] if drawn.names else f'task {i}'} ({Status(code).name})"
            for i, code in enumerate(codes)
            if code != Status.OK
        )
        return OuterGradient(meta.value, meta.grads._asdict(), failed)

    @override
    def validation(self, learned: Mapping[str, PyTree]) -> float | None:
        if self._validation is None:
            return None
        return float(self.evaluate(learned, self._validation).mean())

    def evaluate(self, learned: Mapping[str, PyTree], tasks: TaskData) -> Tensor:
        """The validation loss of each task."""
        return self._spread.evaluate(learned["params"], tasks, learned["hparams"])

    @override
    def about(self, drawn: TaskBatch) -> str:
        return f", whose tasks are: {', '.join(drawn.names) or 'unnamed'}"

    @override
    def settings(self) -> Mapping[str, Any]:
        return {"the method": self._method, "the tasks": self._tasks}

    @override
    def shared(self) -> Mapping[str, Any]:
        return {"the method": self._method, "the validation tasks": self._validation}


def _method_and_start(
    method: Method | str, model: Any, loss: Loss | None, settings: dict[str, Any]
) -> tuple[Method, PyTree, PyTree]:
    """The method, the initial parameters and the model's own hparams."""
    params, hparams, own = _parts(model, loss)
    if isinstance(method, str):
        factory = METHODS.get(method)
        if own is None:
            raise InputError(
                f"method is the name {shown(method)}, but there is no loss: pass a module with"
                " loss=objective(model, batch), parameters with loss=loss(params, batch), or build"
                f" the method yourself, METHODS.get({shown(method)})(loss, ...)."
            )
        keywords_of(factory).check(f"method {shown(method)}", settings)
        return cast("Method", factory(own, **settings)), params, hparams
    if not isinstance(method, Method):  # pyright: ignore
        raise InputError(f"method is {shown(method)}; expected a Method or a name in METHODS.")
    if settings or loss is not None:
        raise InputError(
            f"settings {sorted(settings)} and loss are for a method given by name; this one is"
            f" {type(method).__name__}, which has its own."
        )
    return method, params, hparams


def _parts(model: Any, loss: Loss | None) -> tuple[PyTree, PyTree, Loss | None]:
    """Parameters, hparams and the loss of parameters, where there is one."""
    if isinstance(model, nn.Module):
        if loss is None:
            raise InputError(
                "model is a module: pass loss=objective, called as objective(model, batch), or the"
                " parameters that your Method moves."
            )
        model, loss = from_module(model, loss), None
    if isinstance(model, ModuleLoss):
        if loss is not None:
            raise InputError("model is a ModuleLoss, which has a loss: leave loss out.")
        return model.params, model.hparams, model.loss
    return model, None, loss
