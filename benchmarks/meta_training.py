"""Meta-training of a method, and what its initialisation is good for on new tasks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.harness.store import ResultStore
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Batch

LOGGED = 50
"""How many points of the training curve are kept."""


class Initialisation(NamedTuple):
    """A learned initialisation."""

    params: Parameters  # the initialisation
    hparams: Any  # what else the method learned
    record: dict[str, Any]  # plain data about the run: the training curve, seconds and failures


def checkpoint(store: ResultStore, *depends: object) -> Path:
    """Where a run keeps its checkpoint: another one whenever what it depends on changes."""
    return store.cell_path(" ".join(map(str, depends))).with_suffix("")


def train(
    method: odeopt.Method, params: Parameters, tasks: Callable[[int], Any], updates: int,
    folder: Path | None,
) -> Initialisation:  # fmt: skip
    """Learn an initialisation with Adam, 1e-3, going on from the checkpoint in the folder."""
    learner = odeopt.MetaLearner(
        method, params, tasks, folder=folder, checkpoint_every=100, show_progress=False
    )
    if folder is not None:
        learner.restore()
    begin = time.perf_counter()
    with warnings.catch_warnings():  # failed tasks are counted in the record
        warnings.simplefilter("ignore", odeopt.OdeoptWarning)
        stopped = fit(learner, updates)
    record = {**record_of(learner), "seconds_here": time.perf_counter() - begin, "stopped": stopped}
    return Initialisation(learner.params, learner.hparams, record)


def record_of(learner: odeopt.MetaLearner) -> dict[str, Any]:
    """The training curve, the seconds and the failures of all updates."""
    history = learner.history()
    stride = max(1, len(history) // LOGGED)
    return {
        "updates": learner.updates,
        "curve": [[step.update, step.value] for step in history[::stride]],
        "seconds": sum(step.seconds for step in history),
        "failed_tasks": sum(len(step.failed) for step in history),
    }


def fit(learner: odeopt.MetaLearner, updates: int) -> str:
    """Why training up to an update ended early; empty if it did not."""
    try:
        learner.fit(updates)
    except odeopt.OdeoptError as error:
        return f"update {learner.updates}: {type(error).__name__}: {error}"
    return ""


def spread(params: Parameters, tasks: int) -> Parameters:
    """The same parameters for each task, with a leading dimension."""
    return {name: leaf.expand(tasks, *leaf.shape).clone() for name, leaf in params.items()}


def adapt_by_descent(
    problem: Problem, params: Parameters, support: Batch, lr: float, steps: int, every: int,
    compile: str | None = None,
) -> list[Parameters]:  # fmt: skip
    """Parameters of each task after 0, every, 2 every, ... steps of gradient descent."""
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(problem.loss), adjoint=odeopt.FirstOrderAdjoint(), compile=compile
    )
    grid = odeopt.TimeGrid.from_lr(lr, steps, observe=range(0, steps + 1, every))
    with torch.no_grad():
        sol = opt.solve(params, support, grid, tasks=True, on_failure="skip")
    first = spread(params, support.x.shape[0])
    return [first, *sol.observed[1:]]


def adapt_by_adam(
    problem: Problem, params: Parameters, support: Batch, epochs: int, every: int
) -> list[Parameters]:
    """Parameters of each task after 0, every, 2 every, ... steps of Adam on all its data.

    Tasks are stacked: Adam treats every entry by itself, so that they do not mix.
    """

    def snapshot() -> Parameters:
        return {name: leaf.detach().clone() for name, leaf in leaves.items()}

    leaves = {k: x.requires_grad_() for k, x in spread(params, support.x.shape[0]).items()}
    optimizer = torch.optim.Adam(list(leaves.values()), lr=1e-3, weight_decay=1e-6)
    losses = torch.func.vmap(problem.loss)
    states = [snapshot()]
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        losses(leaves, support).sum().backward()
        optimizer.step()
        if epoch % every == 0:
            states.append(snapshot())
    return states


def evaluate(
    score: Callable[[Parameters, Any], Tensor], states: list[Parameters], test: Any
) -> Tensor:
    """The score of each task at each state, shape [states, tasks]."""
    with torch.no_grad():
        return torch.stack([torch.func.vmap(score)(state, test) for state in states])


def ended_early(reasons: Mapping[str, str]) -> str:
    """The runs that ended early, of whatever names, with why; empty where none did."""
    lines = [f"- {name}: {why}" for name, why in reasons.items() if why]
    return "Runs that ended early:\n\n" + "\n".join(lines) if lines else ""


TOO_SHORT = "This preset is far too short to compare methods by; it shows that they all train."
