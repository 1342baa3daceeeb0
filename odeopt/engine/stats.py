"""What a solve cost."""

from __future__ import annotations

from dataclasses import dataclass

from odeopt.checkpoint.plan import Plan


@dataclass
class Stats:
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
