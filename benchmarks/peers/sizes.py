"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.harness.registry import Preset
from benchmarks.peers import contenders as c
from benchmarks.peers import problems
from benchmarks.peers.contenders import CONTENDERS, PEERS
from benchmarks.peers.problems import Setup

ALL = tuple(CONTENDERS)
FEW = (c.OURS, c.PLAIN, c.DENSITY, c.RK4, *PEERS, c.KERNELS)
SHORT = tuple(name for name in (c.EAGER, *FEW) if name not in (c.DENSITY, c.RK4))
"""Without what takes longest to compile."""

UNCOMPILED = (c.EAGER, c.HIGHER, c.TORCHOPT, c.UNROLLED, c.VMAP_ADJOINT)
EXACT = (c.OURS, c.PLAIN, c.BINOMIAL, c.DENSITY, c.HIGHER, c.TORCHOPT, c.KERNELS)


@dataclass(frozen=True)
class Limits:
    """Of the processes of one point."""

    rounds: int  # timed runs of each contender, in turn
    seconds: float  # time that the timed runs of a contender may take together, about
    start: float  # time that one answer may take, with what it takes to load and to compile
    memory_gib: float  # memory beyond what is in use after the warm-up


@dataclass(frozen=True)
class Point:
    """One table: a problem, a horizon and who takes part."""

    problem: str  # a key of `problems.PROBLEMS`
    steps: int  # of gradient descent
    tasks: int  # how many
    contenders: tuple[str, ...] = ALL  # keys of `CONTENDERS`
    dtype: str = "float32"  # "float32" or "float64"

    @property
    def key(self) -> str:
        """The key of its cell."""
        return f"{self.problem} {self.dtype} steps={self.steps} tasks={self.tasks}"

    def setup(self, device: torch.device, dtype: torch.dtype | None = None) -> Setup:
        """The problem and its horizon, in another dtype if one is given."""
        problem = problems.make(self.problem, self.tasks)
        problem = problem.to(device, dtype or getattr(torch, self.dtype))
        return Setup(problem, self.steps * problem.lr, self.steps)


@dataclass(frozen=True)
class Stiff:
    """A long horizon."""

    t1: float  # it
    tolerances: tuple[float, ...]  # of the stabilised solver


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    points: tuple[Point, ...]  # with a process per contender
    overhead: tuple[int, ...]  # numbers of steps at which odeopt is compared with the bare kernels
    # entries (contender, setting) of the work-precision diagram
    precision: tuple[tuple[str, float], ...]
    precision_steps: int  # steps of gradient descent at its horizon
    stiff: tuple[Stiff, ...]  # long horizons
    limits: Limits  # of the processes
    paired_rounds: int  # rounds of what is measured in one process


def _precision(
    descent: tuple[int, ...], rk4: tuple[int, ...], stabilised: tuple[float, ...],
    torchdiffeq: tuple[float, ...],
) -> tuple[tuple[str, float], ...]:  # fmt: skip
    return (
        *((c.OURS, steps) for steps in descent),
        *((name, descent[len(descent) // 2]) for name in (c.HIGHER, c.UNROLLED)),
        *((name, steps) for name in (c.RK4, c.HERMITE) for steps in rk4),
        *((c.STABILISED, rtol) for rtol in stabilised),
        *((c.TORCHDIFFEQ, rtol) for rtol in torchdiffeq),
    )


TOLERANCES = (0.1, 5e-2, 3e-2, 2e-2, 1e-2, 7e-3, 5e-3, 3e-3, 2e-3, 1e-3)

SIZES = {
    Preset.SMOKE: Sizes(
        (Point("mlp", 3, 2, (c.EAGER, c.HIGHER, c.UNROLLED)),), (), (), 5, (),
        Limits(1, 10.0, 60.0, 8.0), 1,
    ),
    Preset.QUICK: Sizes(
        (
            Point("mlp", 500, 5, (c.OURS, c.PLAIN, c.BINOMIAL, c.RK4, c.HIGHER, c.TORCHOPT,
                                  c.UNROLLED, c.VMAP_ADJOINT, c.TORCHDIFFEQ, c.KERNELS)),
            Point("mlp", 50, 5, (c.OURS, c.HIGHER, c.UNROLLED, c.VMAP_ADJOINT)),
            Point("conv", 3, 1, UNCOMPILED),
            Point("transformer", 10, 2, UNCOMPILED),
        ),
        (500,), (), 500, (), Limits(3, 20.0, 120.0, 8.0), 5,
    ),
    Preset.PAPER: Sizes(
        (
            *(Point("mlp", steps, 5) for steps in (10, 100, 500, 2000)),
            Point("mlp", 500, 5, EXACT, "float64"),
            *(Point("mlp", 100, tasks, FEW) for tasks in (1, 16, 64)),
            Point("conv", 10, 1, (*SHORT, c.RK4)), Point("conv", 30, 1, SHORT),
            Point("conv", 10, 4, SHORT),
            Point("transformer", 10, 1, (*SHORT, c.RK4)), Point("transformer", 100, 1, SHORT),
            Point("transformer", 10, 4, SHORT),
        ),
        (500, 2000),
        _precision((125, 250, 500, 1000, 2000), (8, 10, 12, 16, 24, 32, 64),
                   (0.1, 1e-2, 1e-3, 1e-4), (1e-1, 1e-2, 1e-3, 1e-4)),
        500, (Stiff(320.0, TOLERANCES), Stiff(1000.0, TOLERANCES)),
        Limits(5, 40.0, 600.0, 8.0), 9,
    ),
}  # fmt: skip
