"""The outer loop: optimiser, schedule, clipping, validation, progress, checkpoints."""

from __future__ import annotations

import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from odeopt.errors import DivergenceError, InputError, OdeoptError, OdeoptWarning
from odeopt.outer.metrics import Step, progress
from odeopt.outer.run_folder import Checkpoint, NamedOptimizer, RunFolder, layout, named_leaves
from odeopt.outer.workers import Workers
from odeopt.tools import tree
from odeopt.tools.arguments import check_integer, is_positive
from odeopt.tools.describing import describe_leniently
from odeopt.tools.shown import Shown, counted, shown
from odeopt.tools.types import PyTree
from odeopt.tools.version import versions

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OuterGradient:
    """An outer loss and its gradient.

    Attributes:
        value: the loss, a scalar.
        grads: gradients by the names of what is learned, each a tree of the same structure.
        failed: the names of tasks that failed and were left out.
    """

    value: Tensor | float
    grads: Mapping[str, PyTree]
    failed: tuple[str, ...] = ()


class OuterObjective(ABC):
    """What an outer loop makes small. The same for an update whenever it is asked."""

    def draw(self, update: int) -> Any:
        """The data of an update; every worker draws, and all have to draw the same."""
        del update

    @abstractmethod
    def gradient(self, learned: Mapping[str, PyTree], drawn: Any) -> OuterGradient:
        """The loss on some data, and its gradient w.r.t. what is learned.

        Raises:
            OdeoptError: the loop adds to it in which update it was.
        """

    def validation(self, learned: Mapping[str, PyTree]) -> float | None:
        """The loss on held-out data; None without any."""
        del learned
        return None

    def about(self, drawn: Any) -> str:
        """What is said of the data where an update fails, e.g. ", whose tasks are: sine 3"."""
        del drawn
        return ""

    def settings(self) -> Mapping[str, Any]:
        """What tells a run from another, by name, for its checkpoints."""
        return {}

    def shared(self) -> Mapping[str, Any]:
        """What has to be the same on every worker, by name."""
        return {}


@final
class OuterLoop(Shown):
    r"""Moves what is learned along the gradients of an objective.

    $\eta \leftarrow \mathrm{optimizer}(\eta, \nabla F(\eta))$, the gradient cut to length `clip`,
    the learning rate set by `schedule`. A run that was interrupted goes on from its checkpoint, on
    a CPU bit for bit. `MetaLearner` and `BilevelProblem.minimize` are this with objectives of
    their own; the settings that are not described here are those of `MetaLearner`.

    Args:
        objective: what is made small.
        learned: trees by name; their tensors are copied. `Step.change` is that of the first.
        optimizer: makes the outer optimiser from a list of tensors.

    Attributes:
        learned: the trees as they are now.
        updates: how many have been made.

    Raises:
        InputError: if a setting cannot be used.
    """

    def __init__(
        self, objective: OuterObjective, learned: Mapping[str, PyTree],
        optimizer: Callable[[list[Tensor]], Optimizer] = torch.optim.Adam, *,
        schedule: Callable[[Any], LRScheduler] | None = None,
        clip: float | None = None, validate_every: int = 100,
        callback: Callable[[Step], None] | None = None, folder: str | Path | None = None,
        checkpoint_every: int = 100, show_progress: bool = True, workers: Workers | None = None,
    ) -> None:  # fmt: skip
        if clip is not None and not is_positive(clip):
            raise InputError(f"clip is {shown(clip)}; expected a positive number or None.")
        _check_callback(callback)
        self._validate_every = check_integer(validate_every, "validate_every")
        self._checkpoint_every = check_integer(checkpoint_every, "checkpoint_every")
        self._objective, self._clip, self._callback = objective, clip, callback
        self._workers = Workers.alone() if workers is None else workers
        self._speaks = self._workers.rank == 0
        self._show = show_progress and self._speaks
        self.updates = 0
        self.learned = {
            name: tree.map_tensors(lambda leaf: leaf.detach().clone(), own)
            for name, own in learned.items()
        }
        leaves = named_leaves(self.learned)
        moved = [leaf for leaf in leaves.values() if tree.is_differentiable(leaf)]
        self._optimizer = _built("optimizer", optimizer, moved, Optimizer, _OPTIMIZER)
        self._schedule: LRScheduler | None = None
        if schedule is not None:
            self._schedule = _built("schedule", schedule, self._optimizer, LRScheduler, _SCHEDULE)
        self._named_optimizer = NamedOptimizer(self._optimizer, leaves)
        self._folder = None if folder is None else RunFolder(_path(folder))
        self._writer = self._folder if self._speaks else None
        self._settings = {} if self._writer is None else self._describe(schedule)

    @override
    def _shown(self) -> Iterator[str]:
        yield type(self._optimizer).__name__
        yield counted(self.updates, "update")
        if self._schedule is not None:
            yield f"schedule={type(self._schedule).__name__}"
        if self._clip is not None:
            yield f"clip={self._clip}"
        if self._folder is not None:
            yield f"folder={shown(self._folder.path)}"

    def fit(
        self, updates: int, tolerance: float = 0.0, callback: Callable[[Step], None] | None = None
    ) -> list[Step]:
        """Go on until so many updates have been made in all, or one moves by less than tolerance.

        Returns the steps made in this call; raises as `MetaLearner.fit`. `callback` is called after
        that of the loop.
        """
        _check_callback(callback)
        with self._claimed():
            self._check_same({"updates and tolerance": (updates, tolerance)})
            steps = self._go_on(updates, tolerance, (self._callback, callback))
            if steps:
                self._save()
        return steps

    def history(self) -> list[Step]:
        """Every step so far, as `metrics.jsonl` has them (read by each worker for itself)."""
        return [] if self._folder is None else self._folder.metrics.read()

    def save(self) -> None:
        """Write a checkpoint atomically; raises as `MetaLearner.save`."""
        if self._folder is None:
            raise InputError("this learner has no folder to save to: pass folder= when it is made.")
        with self._claimed():
            self._save()

    def restore(self) -> bool:
        """Go on from the checkpoint in the folder; raises as `MetaLearner.restore`."""
        workers, writer = self._workers, self._writer
        there = workers.from_first(
            "a restart", lambda: writer is not None and writer.checkpoint.exists()
        )
        if not there:
            return False
        with self._locked():
            header, checkpoint = workers.from_first("a restart", self._read)
            workers.together("a restart", lambda: self._check_restart(checkpoint))
            self._load(header, checkpoint)
        return True

    def _go_on(
        self, updates: int, tolerance: float, callbacks: Sequence[Callable[[Step], None] | None]
    ) -> list[Step]:
        steps: list[Step] = []
        with progress(updates, self.updates, self._show) as show:
            while self.updates < updates:
                step = self._update(last=self.updates == updates - 1)
                steps.append(step)
                show(step)
                self._record(step)
                for callback in callbacks:
                    if callback is not None:
                        callback(step)
                if step.change < tolerance:
                    break
        return steps

    @contextmanager
    def _claimed(self) -> Generator[None]:
        """Keep other learners out of the folder, which becomes this one's."""
        with self._locked():
            self._write("the folder", lambda folder: folder.claim(self.updates))
            yield

    @contextmanager
    def _locked(self) -> Generator[None]:
        is_new = self._write("the folder", RunFolder.lock)
        try:
            yield
        finally:
            if is_new and self._writer is not None:
                self._writer.unlock()

    def _write(self, what: str, change: Callable[[RunFolder], T]) -> T | None:
        """Let worker 0 change the folder, if there is one; all go on once that has gone well."""
        writer = self._writer
        return self._workers.together(what, lambda: None if writer is None else change(writer))

    def _save(self) -> None:
        self._check_same({})
        self._write("a checkpoint", lambda folder: folder.write(self._checkpoint()))

    def _checkpoint(self) -> Checkpoint:
        leaves = named_leaves(self.learned)
        tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        return Checkpoint(
            versions(), self._settings, layout(leaves), self.updates, tensors,
            self._named_optimizer.state(), torch.get_rng_state(),
            None if self._schedule is None else self._schedule.state_dict(),
        )  # fmt: skip

    def _read(self) -> tuple[bytes, Checkpoint]:
        assert self._writer is not None, "worker 0 reads"
        path = self._writer.checkpoint
        header, checkpoint = Checkpoint.read(path)
        checkpoint.check_layout(layout(named_leaves(self.learned)), path)
        checkpoint.check_settings(self._settings, path)
        return header, checkpoint

    def _check_restart(self, checkpoint: Checkpoint) -> None:
        """All that can fail in a restart."""
        assert self._folder is not None, "worker 0 has found a checkpoint"
        checkpoint.check_layout(layout(named_leaves(self.learned)), self._folder.checkpoint)
        if self._writer is not None:
            self._writer.metrics.truncate(checkpoint.updates)

    def _load(self, header: bytes, checkpoint: Checkpoint) -> None:
        self._named_optimizer.load(checkpoint.optimizer)
        if self._schedule is not None and checkpoint.schedule is not None:
            self._schedule.load_state_dict(checkpoint.schedule)
        torch.set_rng_state(checkpoint.random)
        leaves = named_leaves(self.learned)
        for name, stored in checkpoint.tensors.items():
            leaves[name].copy_(stored)
        assert self._folder is not None, "worker 0 has found a checkpoint"
        self._folder.go_on_from(header)
        self.updates = checkpoint.updates

    def _update(self, last: bool) -> Step:
        begin, update = time.perf_counter(), self.updates
        drawn = self._workers.agree("the tasks", f"in update {update}", self._draw)
        outer = self._differentiate(drawn)
        norm = self._set_gradients(outer.grads)
        first = tree.tensors(next(iter(self.learned.values()), None))
        before = [leaf.clone() for leaf in first]
        with torch.no_grad():
            self._optimizer.step()
        moved = zip(first, before, strict=True)
        change = math.sqrt(sum(float((new - old).square().sum()) for new, old in moved))
        validation = None
        if last or (update + 1) % self._validate_every == 0:
            validation = self._objective.validation(self.learned)
        self._step_schedule(validation)
        self.updates += 1
        if outer.failed and self._speaks:
            message = f"update {update} left out: {', '.join(outer.failed)}"
            warnings.warn(message, OdeoptWarning, stacklevel=2)
        return Step(
            update, float(outer.value), norm, change, time.perf_counter() - begin, outer.failed,
            validation,
        )  # fmt: skip

    def _draw(self) -> tuple[dict[str, str], Any]:
        """The data of an update, and what may change between updates and is not in them."""
        options = describe_leniently(self._named_optimizer.options())
        return {"the outer optimizer's options": options}, self._objective.draw(self.updates)

    def _differentiate(self, drawn: Any) -> OuterGradient:
        try:
            return self._objective.gradient(self.learned, drawn)
        except OdeoptError as error:
            error.add_note(f"in update {self.updates}{self._objective.about(drawn)}")
            raise

    def _set_gradients(self, grads: Mapping[str, PyTree]) -> float:
        """Give each leaf its gradient; the norm of all, before it is cut."""
        leaves = tree.leaves(list(self.learned.values()))
        gradients = tree.leaves([grads[name] for name in self.learned])
        pairs = [
            (leaf, gradient)
            for leaf, gradient in zip(leaves, gradients, strict=True)
            if isinstance(gradient, Tensor)
        ]
        # in double precision, in which those of huge numbers have a norm
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for _, gradient in pairs]
        norm = math.hypot(*map(float, norms))
        if not math.isfinite(norm):
            raise DivergenceError(
                f"the outer gradient of update {self.updates} is not finite: lower the outer"
                " learning rate, or set clip."
            )
        scale = 1.0 if self._clip is None or norm <= self._clip else self._clip / norm
        for leaf, gradient in pairs:
            leaf.grad = gradient.to(leaf.dtype) * scale
        return norm

    def _step_schedule(self, validation: float | None) -> None:
        if isinstance(self._schedule, ReduceLROnPlateau):
            if validation is not None:
                self._schedule.step(validation)
        elif self._schedule is not None:
            self._schedule.step()

    def _record(self, step: Step) -> None:
        if self._writer is not None:
            self._writer.metrics.append(step)
        if self.updates % self._checkpoint_every == 0:
            self._save()

    def _check_same(self, call: Mapping[str, Any]) -> None:
        """Compare all that decides the next updates, and what was asked for."""
        parts = {
            **self.learned,
            **self._objective.shared(),
            "clip": self._clip,
            "the outer optimizer": (type(self._optimizer), self._named_optimizer.state()),
            "validate_every": self._validate_every,
            "checkpoint_every": self._checkpoint_every,
            "the folder": self._folder is not None,
            **call,
        }
        self._workers.check_same(f"before update {self.updates}", parts)

    def _describe(self, schedule: Callable[[Any], LRScheduler] | None) -> dict[str, str]:
        own = {name: describe_leniently(part) for name, part in self._objective.settings().items()}
        named = {"the schedule": describe_leniently(schedule)} if schedule is not None else {}
        return {**own, "clip": repr(self._clip), **named, **self._named_optimizer.settings()}


def _path(folder: Any) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"folder is {shown(folder)}; expected the path of a folder.")
    return Path(folder).absolute()


def _check_callback(callback: Any) -> None:
    if callback is not None and not callable(callback):
        raise InputError(f"callback is {shown(callback)}; expected a function of a Step.")


_OPTIMIZER = (
    "a torch.optim.Optimizer from a list of tensors, which are copies of those given, e.g."
    " torch.optim.Adam or lambda leaves: torch.optim.SGD(leaves, lr=0.1)"
)
_SCHEDULE = (
    "a scheduler of torch.optim.lr_scheduler from the outer optimizer, e.g. lambda optimizer:"
    " CosineAnnealingLR(optimizer, T_max=1000)"
)


_MADE = " This one has been made already: write {what}=lambda {given}: {name}({given}, ...)."
_GIVEN = {"optimizer": "leaves", "schedule": "optimizer"}


def _built(what: str, factory: Any, argument: Any, kind: type[T], wanted: str) -> T:
    """What a factory returns.

    Raises:
        InputError: if it is no factory, such as an optimiser that is made already.
    """
    value = factory(argument) if callable(factory) else factory
    if not callable(factory) or not isinstance(value, kind):
        said, name = "returned" if callable(factory) else "is", type(value).__name__
        made = "" if callable(factory) or not isinstance(value, Optimizer | LRScheduler) else _MADE
        raise InputError(
            f"{what} {said} a {name}; expected a function that makes {wanted}."
            + made.format(what=what, name=name, given=_GIVEN[what])
        )
    return value
