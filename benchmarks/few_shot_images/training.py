"""Meta-training up to a number of gradient evaluations, in as many pieces as one likes."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

import odeopt
from benchmarks.few_shot_images.sizes import Length
from benchmarks.harness.store import ResultStore
from benchmarks.meta_training import Initialisation, fit, record_of
from benchmarks.problems.models import Parameters
from odeopt.outer.method import TaskData
from odeopt.tools.types import PyTree

CHECKPOINT_EVERY = 10
"""Updates, each of which takes a second or so; what was made after a checkpoint is made again."""

COSTS = "costs.jsonl"


class Metered(odeopt.Method):
    """A method that writes into a folder what each meta-update costs.

    `price(stats)` is in gradient evaluations per task.
    """

    def __init__(
        self, method: odeopt.Method, tasks: Callable[[int], odeopt.TaskBatch],
        price: Callable[[odeopt.Stats], float], folder: Path,
    ) -> None:  # fmt: skip
        self._method, self._tasks, self._price = method, tasks, price
        self._path, self._update = folder / COSTS, 0
        self._costs: dict[int, float] = {}
        self._totals = [0.0]
        folder.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        for line in self._path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # one that an interruption cut short
                update, cost = json.loads(line)
                self._costs[update] = cost

    def settings(self) -> dict[str, Any]:
        """What a run may depend on; the folder is another one where the tasks are."""
        return {"method": self._method}

    def tasks(self, update: int) -> odeopt.TaskBatch:
        """The meta-batch of an update, which the next call is on."""
        self._update = update
        return self._tasks(update)

    def spent(self, updates: int) -> float:
        """What the first updates cost."""
        while len(self._totals) <= updates:
            self._totals.append(self._totals[-1] + self._costs[len(self._totals) - 1])
        return self._totals[updates]

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> odeopt.MetaGradient:
        result = self._method(params, task_batch, hparams)
        cost = self._price(result.stats)
        if self._costs.get(self._update) != cost:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps([self._update, cost])}")
        self._costs[self._update] = cost
        return result

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        return self._method.adapt(params, train, hparams)

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        return self._method.evaluate(params, task_batch, hparams)

    @override
    def init_hparams(self, params: PyTree, hparams: PyTree = None) -> PyTree:
        return self._method.init_hparams(params, hparams)


def train(
    metered: Metered, params: Parameters, folder: Path, length: Length, shares: Iterable[float],
    look: Callable[[Parameters, Any], dict[str, Any]], clip: float | None = None,
) -> Initialisation:  # fmt: skip
    """Meta-training in a folder, from which it goes on where it was stopped.

    Args:
        metered: The method and its meta-batches.
        params: The initialisation to start with.
        folder: Where the checkpoint, the log and the looks are.
        length: When training ends.
        shares: Of the length, rising, at which there is a look.
        look: `look(params, hparams)`, plain data to be kept. One that was made in an earlier
            piece of the run is not made again.
        clip: The largest norm of a meta-gradient; None for no limit.
    """
    goal, stopped, seconds = Length(0, 0.0), "", 0.0

    def is_there() -> bool:
        done = learner.updates
        return done >= goal.updates or metered.spent(done) >= goal.evaluations

    def watch(step: odeopt.Step) -> None:
        del step
        if is_there():
            raise _ReachedError

    learner = odeopt.MetaLearner(
        metered, params, metered.tasks, clip=clip, folder=folder, show_progress=False,
        checkpoint_every=CHECKPOINT_EVERY, callback=watch,
    )  # fmt: skip
    learner.restore()

    def reach(part: Length) -> None:
        """Update until a part of the length is reached, or an update fails."""
        nonlocal goal, stopped, seconds
        goal, begin = part, time.perf_counter()
        with warnings.catch_warnings():  # failed tasks are counted in the record
            warnings.simplefilter("ignore", odeopt.OdeoptWarning)
            if not is_there() and not stopped:
                with suppress(_ReachedError):
                    stopped = fit(learner, goal.updates)
                learner.save()
        seconds += time.perf_counter() - begin

    looks, kept = [], ResultStore(folder)
    for share in shares:
        key = f"look {share:g}"
        seen = kept.get(key, "")
        if seen is None:
            reach(length.part(share))
            seen = {"updates": learner.updates, "spent": metered.spent(learner.updates)}
            seen = kept.put(key, "", seen | look(learner.params, learner.hparams))
        looks.append(seen)
    reach(length)
    spent = metered.spent(learner.updates)
    record = {"spent": spent, "looks": looks, "seconds_here": seconds, "stopped": stopped}
    return Initialisation(learner.params, learner.hparams, record_of(learner) | record)


class _ReachedError(Exception):
    """The length is reached."""
