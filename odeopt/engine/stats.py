"""What a solve cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from typing_extensions import override

from odeopt.checkpoint.plan import Plan
from odeopt.tools.shown import Shown, counted, number


@dataclass
class Stats(Shown):
    """Counts along one trajectory; with tasks, each task's own share (all tasks cost the same).

    Attributes:
        steps: steps of the forward sweep (accepted ones, for an adaptive solver).
        gradient_evaluations: velocity evaluations, replayed and rejected ones included. The one
            evaluation with which each call checks its inputs is not counted.
        hvps: vector-Jacobian products of the velocity (Hessian-vector products).
        replayed_steps: steps made again in the backward sweep.
        recorded_steps: steps that were pulled through the graph they were made with.
        graph_bytes: the most bytes of such graphs at one time, as far as they were measured.
        stored_states: the most states kept at one time.
        stored_bytes: their size (of all tasks together).
        device_bytes: the most bytes of kept states on the device at one time.
        host_bytes: likewise in the memory of the host (`Host()`).
        disk_bytes: likewise on disk (`Disk(path)`).
        plan: what `Graphs()` or a `MemoryBudget` chose; None for other schedules.
        compile_misses: kernels that were traced during this call.
        compile_hits: kernels that had been traced before.
        compile_seconds: time spent on tracing, compiling and checking.
    """

    steps: int = 0
    gradient_evaluations: int = 0
    hvps: int = 0
    replayed_steps: int = 0
    recorded_steps: int = 0
    graph_bytes: int = 0
    stored_states: int = 0
    stored_bytes: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    plan: Plan | None = None
    compile_misses: int = 0
    compile_hits: int = 0
    compile_seconds: float = 0.0

    @override
    def _shown(self) -> Iterator[str]:
        for part in fields(self):
            value: Plan | int | float | None = getattr(self, part.name)
            if value:
                yield f"{part.name}={_count(value)}"


def cost(stats: Stats) -> list[str]:
    """What is said of the cost of a result: `100 steps`, `100 gradients`, `100 HVPs`."""
    counts = {
        "step": stats.steps, "gradient": stats.gradient_evaluations, "HVP": stats.hvps,
    }  # fmt: skip
    return [counted(count, what) for what, count in counts.items() if count]


def _count(value: Plan | float) -> str:
    if isinstance(value, Plan):
        return repr(value.schedule)
    return str(value) if isinstance(value, int) else number(value)
