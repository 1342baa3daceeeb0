"""The outer loop of meta-learning."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from odeopt.engine.safety import Status
from odeopt.errors import DivergenceError, InputError, OdeoptError, OdeoptWarning
from odeopt.inner.module import ModuleLoss, from_module
from odeopt.outer.keeper import Keeper
from odeopt.outer.method import MetaGradient, Method, TaskBatch, TaskData, as_task_batch
from odeopt.outer.metrics import Step
from odeopt.outer.named import NamedOptimizer, named_leaves
from odeopt.outer.progress import progress
from odeopt.outer.spread import SpreadMethod
from odeopt.outer.workers import Workers
from odeopt.registry import METHODS
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently
from odeopt.tools.keywords import keywords_of
from odeopt.tools.types import Loss, PyTree


def resolve(
    method: Method | str, model: Any, loss: Loss | None, settings: dict[str, Any]
) -> tuple[Method, PyTree, PyTree]:
    """The method, the initial parameters and the model's own hparams."""
    params, hparams, own = _parts(model, loss)
    if isinstance(method, str):
        factory = METHODS.get(method)
        if own is None:
            raise InputError(
                f"method is the name {method!r}, but there is no loss: pass a module with"
                " loss=objective(model, batch), parameters with loss=loss(params, batch), or build"
                f" the method yourself, METHODS.get({method!r})(loss, ...)."
            )
        keywords_of(factory).check(f"method {method!r}", settings)
        return cast("Method", factory(own, **settings)), params, hparams
    if not isinstance(method, Method):  # pyright: ignore
        raise InputError(f"method is {method!r}; expected a Method or a name in METHODS.")
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


def make_optimizer(optimizer: Any, leaves: list[Tensor]) -> Optimizer:
    """The outer optimiser that a factory makes.

    Raises:
        InputError: if it is no factory, such as an optimiser that is made already.
    """
    found = optimizer(leaves) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(found, Optimizer):
        said = "returned" if callable(optimizer) else "is"
        raise InputError(
            f"optimizer {said} a {type(found).__name__}; expected a function that makes a"
            " torch.optim.Optimizer from a list of tensors, which are copies of those given, e.g."
            " torch.optim.Adam or lambda leaves: torch.optim.SGD(leaves, lr=0.1)."
        )
    return found


def check_settings(
    tasks: object, clip: float | None, validate_every: object, checkpoint_every: object
) -> None:
    """Raise `InputError` on a setting that cannot be used."""
    if not callable(tasks):
        raise InputError(f"tasks is {tasks!r}; expected tasks(k) -> TaskBatch, e.g. a TaskPool.")
    if clip is not None and not clip > 0:
        raise InputError(f"clip is {clip!r}; expected a positive number or None.")
    counts = {"validate_every": validate_every, "checkpoint_every": checkpoint_every}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name} is {count!r}; expected a positive integer.")


Tasks = Callable[[int], TaskData]
"""`tasks(k)` is the meta-batch of update k, the same whenever it is asked for."""


@final
class MetaLearner:
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
        clip: float | None = None,
        validation: TaskData | None = None,
        validate_every: int = 100,
        callback: Callable[[Step], None] | None = None,
        folder: str | Path | None = None,
        checkpoint_every: int = 100,
        show_progress: bool = True,
        workers: Workers | None = None,
    ) -> None:
        self.method, params, own = resolve(method, model, loss, dict(settings or {}))
        check_settings(tasks, clip, validate_every, checkpoint_every)
        self._tasks, self._clip, self._callback = tasks, clip, callback
        self._validation = None if validation is None else as_task_batch(validation)
        self._validate_every, self._checkpoint_every = validate_every, checkpoint_every
        self._workers = Workers.alone() if workers is None else workers
        self._spread = SpreadMethod(self.method, self._workers)
        self._speaks = self._workers.rank == 0
        self._show = show_progress and self._speaks
        self.updates = 0
        self.params: PyTree = tree.map_tensors(_copy, params)
        initial = self.method.init_hparams(params, own) if hparams is None else hparams
        self.hparams: PyTree = tree.map_tensors(_copy, initial)
        learned = [leaf for leaf in self._leaves() if tree.is_differentiable(leaf)]
        self._optimizer = make_optimizer(optimizer, learned)
        self._named_optimizer = named = NamedOptimizer(self._optimizer, self._named())
        path = None if folder is None else Path(folder).absolute()
        self._keeper = Keeper(
            path,
            self._workers,
            self._named,
            named,
            lambda: {**self._describe(), **named.settings()},
        )

    def fit(self, updates: int, tolerance: float = 0.0) -> list[Step]:
        r"""Learn until so many updates have been made in all.

        Args:
            updates: the number of updates to reach, those before a `restore` included.
            tolerance: stop when $\lVert\Delta\theta\rVert$ is below this.

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
        with self._keeper.claimed(self.updates):
            self._check_same({"updates and tolerance": (updates, tolerance)})
            steps = self._go_on(updates, tolerance)
            if steps:
                self._save()
        return steps

    def _go_on(self, updates: int, tolerance: float) -> list[Step]:
        steps: list[Step] = []
        with progress(updates, self.updates, self._show) as show:
            while self.updates < updates:
                step = self._update(last=self.updates == updates - 1)
                steps.append(step)
                show(step)
                self._record(step)
                if step.change < tolerance:
                    break
        return steps

    def adapt(self, train: PyTree) -> PyTree:
        """Parameters adapted to new tasks, each leaf with a leading task dimension."""
        return self.method.adapt(self.params, train, self.hparams)

    def evaluate(self, task_batch: TaskData) -> Tensor:
        """The validation losses of new tasks after adaptation, shape [tasks]."""
        return self._spread.evaluate(self.params, task_batch, self.hparams)

    def history(self) -> list[Step]:
        """Every step so far, as `metrics.jsonl` has them (read by each worker for itself)."""
        return self._keeper.history()

    def save(self) -> None:
        """Write a checkpoint atomically.

        Raises:
            InputError: if the learner has no folder, or that of another run.
            StorageError: if another learner runs in the folder, or it cannot be written to.
            WorkerError: as `fit`.
        """
        self._keeper.check_folder()
        with self._keeper.claimed(self.updates):
            self._save()

    def _save(self) -> None:
        self._check_same({})
        self._keeper.save(self.updates)

    def restore(self) -> bool:
        """Go on from the checkpoint in the folder; False if there is none.

        The run that follows is, on a CPU, bit for bit the one that was interrupted; with another
        number of workers it is so up to rounding. Worker 0 reads the file for all.

        Raises:
            InputError: if the checkpoint is that of another run: what is learned, the method, the
                outer optimiser, clip or the tasks differ. Objects are compared by their attributes
                when the learner is made, or by what their method `settings()` returns; functions
                by their code. Nothing has been changed then.
            StorageError: if the file is damaged, or another learner runs in the folder.
        """
        updates = self._keeper.restore()
        if updates is None:
            return False
        self.updates = updates
        return True

    def _update(self, last: bool) -> Step:
        begin = time.perf_counter()
        batch = self._workers.agree("the tasks", f"in update {self.updates}", self._draw)
        found = self._differentiate(batch)
        norm = self._set_gradients(found)
        before = [leaf.clone() for leaf in tree.tensors(self.params)]
        with torch.no_grad():
            self._optimizer.step()
        moved = zip(tree.tensors(self.params), before, strict=True)
        change = math.sqrt(sum(float((new - old).square().sum()) for new, old in moved))
        validation = self._validate(last)
        self.updates += 1
        return Step(
            self.updates - 1, float(found.value), norm, change, time.perf_counter() - begin,
            self._failed(found, batch), validation,
        )  # fmt: skip

    def _draw(self) -> tuple[dict[str, str], TaskBatch]:
        """The tasks of an update, and what may change between updates and is not in them."""
        options = describe_leniently(self._named_optimizer.options())
        return {"the outer optimizer's options": options}, as_task_batch(self._tasks(self.updates))

    def _differentiate(self, batch: TaskBatch) -> MetaGradient:
        try:
            return self._spread(self.params, batch, self.hparams)
        except OdeoptError as error:
            names = ", ".join(batch.names) or "unnamed"
            error.add_note(f"in meta-update {self.updates}, whose tasks are: {names}")
            raise

    def _set_gradients(self, found: MetaGradient) -> float:
        gradients = tree.leaves(found.grads.params) + tree.leaves(found.grads.hparams)
        pairs = [
            (leaf, gradient)
            for leaf, gradient in zip(self._leaves(), gradients, strict=True)
            if isinstance(gradient, Tensor)
        ]
        norm = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in pairs))
        if not math.isfinite(norm):
            raise DivergenceError(
                f"the meta-gradient of update {self.updates} is not finite: lower the outer"
                " learning rate, or set clip."
            )
        scale = 1.0 if self._clip is None or norm <= self._clip else self._clip / norm
        for leaf, gradient in pairs:
            leaf.grad = gradient.to(leaf.dtype) * scale
        return norm

    def _validate(self, last: bool) -> float | None:
        due = last or (self.updates + 1) % self._validate_every == 0
        if self._validation is None or not due:
            return None
        return float(self.evaluate(self._validation).mean())

    def _failed(self, found: MetaGradient, batch: TaskBatch) -> tuple[str, ...]:
        codes: list[int] = found.status.reshape(-1).tolist()
        failed = tuple(
            f"{batch.names[i] if batch.names else f'task {i}'} ({Status(code).name})"
            for i, code in enumerate(codes)
            if code != Status.OK
        )
        if failed and self._speaks:
            warnings.warn(
                f"meta-update {self.updates - 1} left out: {', '.join(failed)}",
                OdeoptWarning,
                stacklevel=2,
            )
        return failed

    def _record(self, step: Step) -> None:
        self._keeper.note(step)
        if self.updates % self._checkpoint_every == 0:
            self._save()
        if self._callback is not None:
            self._callback(step)

    def _check_same(self, call: Mapping[str, Any]) -> None:
        """Compare all that decides the next updates, and what was asked for."""
        parts = {
            "params": self.params,
            "hparams": self.hparams,
            "the method": self.method,
            "clip": self._clip,
            "the outer optimizer": (type(self._optimizer), self._named_optimizer.state()),
            "the validation tasks": (self._validation, self._validate_every),
            "checkpoint_every": self._checkpoint_every,
            "the folder": self._keeper.has_folder,
            **call,
        }
        self._workers.check_same(f"before update {self.updates}", parts)

    def _describe(self) -> dict[str, str]:
        return {
            "the method": describe_leniently(self.method),
            "clip": repr(self._clip),
            "the tasks": describe_leniently(self._tasks),
        }

    def _named(self) -> dict[str, Any]:
        return named_leaves(self.params, self.hparams)

    def _leaves(self) -> list[Any]:
        return tree.leaves(self.params) + tree.leaves(self.hparams)


def _copy(leaf: Tensor) -> Tensor:
    return leaf.detach().clone()
