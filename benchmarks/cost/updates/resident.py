"""By how much the process grows in a solve with large states and a budget of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.harness import markdown, memory, processes
from benchmarks.harness.runner import Cell

LIMIT = 1.5
"""The growth that is wanted at most, in units of the budget and the working set together."""

SLOTS, WIDTH, BATCH, SECONDS = 4, 512, 32, 300.0
FEW = 2
"""Steps of the solve whose growth is the working set: nothing adds up in it."""

MIB = 2**20


@dataclass(frozen=True)
class Job:
    """One solve.

    Attributes:
        loss: "elementwise", whose step moves memory and little else, or "layer", with products of
            matrices as in a network.
        mib: The size of a state.
        steps: Inner steps.
    """

    loss: str
    mib: float
    steps: int

    @property
    def key(self) -> str:
        """The key of its cell."""
        return f"resident {self.loss} {self.mib:g} MiB"


def cells(sizes: tuple[float, ...], steps: int) -> list[Cell]:
    """A cell for each loss and size of a state."""
    jobs = [Job(loss, mib, steps) for loss in ("elementwise", "layer") for mib in sizes]
    return [Cell(job.key, lambda job=job: compare(job)) for job in jobs]


def compare(job: Job) -> dict[str, Any]:
    """The growth in a solve beside that in a solve of two steps."""
    short = Job(job.loss, job.mib, FEW)
    found = {
        name: processes.run(measure, each, limit=SECONDS)
        for name, each in (("long", job), ("short", short))
    }
    failed = next((cell for cell in found.values() if cell.get("outcome")), None)
    return failed or {"outcome": "", **found}


def measure(job: Job) -> dict[str, Any]:
    """Bytes: the growth at most and at the end, what stays after `release_memory`, live tensors."""
    torch.manual_seed(0)
    loss = LOSSES[job.loss]
    count = int(job.mib * MIB) // 4
    _solve(loss, torch.randn(4 * WIDTH), 2)  # loads libraries
    params = 0.02 * torch.randn(count - count % WIDTH)
    peak = memory.ResidentPeak()
    start = memory.resident()
    result = _solve(loss, params, job.steps)
    found = {"growth": peak.bytes(), "stays": memory.resident() - start}
    assert result.stats.stored_bytes <= SLOTS * params.nbytes
    del result
    odeopt.release_memory()
    found["released"] = memory.resident() - start
    few = min(job.steps, 3 * SLOTS)
    live = memory.peak_live_bytes(lambda: _solve(loss, params, few), torch.device("cpu"))
    return {"outcome": "", **found, "budget": SLOTS * params.nbytes, "live": live}


def _solve(loss: Any, params: Tensor, steps: int) -> odeopt.Result:
    checkpoints = odeopt.MemoryBudget(SLOTS * params.nbytes)
    opt = odeopt.ODEOptimizer(odeopt.SGD(loss), checkpoints=checkpoints)
    x = torch.ones(BATCH, params.numel() // WIDTH)
    return opt.value_and_grad(loss)(params, x, odeopt.TimeGrid.from_lr(0.1, steps), x)


def _elementwise(params: Tensor, batch: Tensor) -> Tensor:
    del batch
    return params.tanh().square().mean() + (params - 1).square().mean()


def _layer(params: Tensor, batch: Tensor) -> Tensor:
    return (torch.tanh(batch @ params.reshape(-1, WIDTH)) - 0.1).square().mean()


LOSSES = {"elementwise": _elementwise, "layer": _layer}


def section(results: dict[str, dict[str, Any]]) -> str:
    """The table of all cells, with what is wanted."""
    rows: list[list[markdown.Entry]] = []
    for key, cell in results.items():
        if not key.startswith("resident "):
            continue
        if cell["outcome"]:
            rows.append([key.removeprefix("resident "), cell["outcome"]])
            continue
        long, short = cell["long"], cell["short"]
        said = long["budget"] + short["growth"]
        numbers = [long["budget"], short["growth"], long["live"], long["growth"], long["stays"]]
        rows.append(
            [
                key.removeprefix("resident "), *(f"{number / MIB:.0f}" for number in numbers),
                f"{long['released'] / MIB:.0f}", f"{long['growth'] / said:.2f}",
            ]
        )  # fmt: skip
    headers = [
        "loss, size of a state", "budget", "working set", "live tensors", "growth", "stays",
        "after release_memory()", "growth over budget and working set",
    ]  # fmt: skip
    return (
        "## Resident memory with large states\n\nMiB. A solve keeps at most four states"
        " (`MemoryBudget`) and replays the others; the process is a new one each time. The working"
        f" set is the growth in a solve of {FEW} steps. Wanted is a growth of at most {LIMIT:g}"
        " times the budget and the working set together; holes in the heap of the C library make"
        " it more than the bytes of live tensors.\n\n" + markdown.table(headers, rows)
    )
