"""Every method by name, built for a benchmark's model and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import odeopt
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task

PAPER = ("a-maml", "maml", "maml-1", "fomaml", "reptile", "imaml-gd")
"""The methods of the paper's figures and tables."""

TENTH = ("maml", "truncated-maml", "meta-sgd", "anil")
"""Methods that take a tenth of the steps, as the paper has it for MAML."""

LABELS = {
    "a-maml": "A-MAML", "maml": "MAML", "maml-1": "MAML-1", "fomaml": "FOMAML",
    "reptile": "Reptile", "imaml-gd": "iMAML-GD", "a-maml-released": "A-MAML as released",
    "truncated-maml": "truncated MAML", "imaml-hf": "iMAML-HF", "comln": "COMLN", "anil": "ANIL",
    "meta-sgd": "Meta-SGD",
}  # fmt: skip
"""How the methods are written in reports."""

OTHERS = tuple(name for name in LABELS if name not in PAPER)
"""The others that are registered."""


@dataclass(frozen=True)
class Inner:
    """The inner optimisation that the methods stand for: gradient descent."""

    lr: float
    steps: int
    states: int  # that A-MAML keeps
    compile: str | None = None  # how kernels are run


def inner_of(name: str, lr: float, steps: int, compile: str | None) -> Inner:
    """What a method of the paper has: a tenth of the steps for some; A-MAML keeps every state."""
    own = max(1, steps // 10) if name in TENTH else steps
    return Inner(lr, own, states=own, compile=compile)


def build(name: str, problem: Problem, inner: Inner, **settings: Any) -> odeopt.Method:
    """A method of `odeopt.METHODS`, with those settings that the paper states, and others."""
    factory = odeopt.METHODS.get(name)
    settings = {"compile": inner.compile, **settings}
    if name == "comln":
        weight, bias = problem.model.head
        return factory(
            lambda params, batch: problem.model.features(params, batch.x),
            lambda outputs, batch: problem.output_loss(outputs, batch.y),
            weight=weight, bias=bias, initial_horizon=inner.lr * inner.steps, **settings,
        )  # fmt: skip
    own: dict[str, Any] = {"lr": inner.lr, "steps": inner.steps}
    if name == "maml-1":
        own = {"lr": inner.lr}
    elif name == "imaml-hf":
        own = {"steps": 5}
    elif name == "a-maml":
        own["states"] = inner.states
    elif name == "truncated-maml":
        own["last"] = max(1, inner.steps // 10)
    elif name == "anil":
        own["head"] = problem.model.head
    if name.startswith("imaml"):
        own["stationarity"] = None
    return factory(problem.loss, **own, **settings)


def gradient_of(
    method: odeopt.Method, params: Parameters, tasks: Task
) -> Callable[[], odeopt.MetaGradient]:
    """The meta-gradient of a method on stacked tasks, ready to be computed."""
    return partial(method, params, odeopt.TaskBatch(*tasks), method.init_hparams(params))
