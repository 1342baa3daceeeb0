"""What a contender is: a way to the meta-gradient, as a function that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.peers.problems import Problem

MAP, FLOW = "A", "B"
"""Targets: the gradient of the map that gradient descent is, and that of the flow."""


class Setup(NamedTuple):
    """What is to be differentiated.

    Attributes:
        problem: With its tasks, dtype and device.
        t1: The horizon.
        steps: Of gradient descent up to the horizon.
    """

    problem: Problem
    t1: float
    steps: int


@dataclass(frozen=True)
class Outcome:
    """A meta-gradient, the mean over tasks, as one vector.

    Attributes:
        gradient: W.r.t. the initialisation.
        counts: What it cost, where the package counts it.
    """

    gradient: Tensor
    counts: dict[str, Any] = field(default_factory=dict[str, Any])


class Runner(NamedTuple):
    """A contender at work.

    Attributes:
        steps: Its steps to the horizon.
        run: `run(steps)` makes that many of them and differentiates; `run(1)` warms it up.
    """

    steps: int
    run: Callable[[int], Outcome]


@dataclass(frozen=True)
class Contender:
    """A way to the meta-gradient.

    Attributes:
        name: For keys.
        label: For reports.
        target: What it approximates, `MAP` (exactly) or `FLOW`.
        make: `make(setup, setting)`; the setting, where there is one, is said by `setting`.
        setting: What a setting other than the default changes.
        package: What it needs besides torch.
    """

    name: str
    label: str
    target: str
    make: Callable[[Setup, float | None], Runner]
    setting: str = ""
    package: str = "torch"

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None
