"""By how much the process grows in a solve with large states and a budget of memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.harness import costs, markdown, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.outline import Cell, Cells

LIMIT = 1.5
"""The growth that is wanted at most, in units of the budget and the working set together."""

SLOTS, WIDTH, BATCH, SECONDS = 4, 512, 32, 300.0
FEW = 2
"""Steps of the solve whose growth is the working set: nothing adds up in it."""


def cells(sizes: tuple[float, ...], steps: int) -> list[Cell]:
    """A cell for each loss and size of a state, in MiB.

    The step of the loss "elementwise" moves memory and little else; in "layer" there are products
    of matrices as in a network.
    """
    return [
        Cell(f"resident {loss} {mib:g} MiB", partial(compare, loss, mib, steps))
        for loss in LOSSES
        for mib in sizes
    ]


def compare(loss: str, mib: float, steps: int) -> dict[str, Any]:
    """The growth in a solve beside that in a solve of two steps."""
    solves = {
        name: processes.run(measure, loss, mib, count, limit=SECONDS)
        for name, count in (("long", steps), ("short", FEW))
    }
    failed = next((cell for cell in solves.values() if cell.get("outcome")), None)
    return failed or {"outcome": "", **solves}


def measure(name: str, mib: float, steps: int) -> dict[str, Any]:
    """Bytes: the growth at most and at the end, what stays after `release_memory`, live tensors."""
    torch.manual_seed(0)
    loss = LOSSES[name]
    count = int(mib * MIB) // 4
    _solve(loss, torch.randn(4 * WIDTH), 2)  # loads libraries
    params = 0.02 * torch.randn(count - count % WIDTH)
    peak = costs.ResidentPeak()
    start = costs.resident()
    result = _solve(loss, params, steps)
    growth, stays = peak.bytes(), costs.resident() - start
    assert result.stats.stored_bytes <= SLOTS * params.nbytes
    del result
    odeopt.release_memory()
    released = costs.resident() - start
    few = min(steps, 3 * SLOTS)
    live = costs.peak_live_bytes(lambda: _solve(loss, params, few), torch.device("cpu"))
    return {
        "outcome": "", "growth": growth, "stays": stays, "released": released,
        "budget": SLOTS * params.nbytes, "live": live,
    }  # fmt: skip


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


def section(results: Cells) -> str:
    """The table of all cells, with what is wanted."""
    rows: list[list[markdown.Entry]] = []
    for key, cell in results.items():
        if not key.startswith("resident "):
            continue
        rows.append([key.removeprefix("resident ")])
        if cell["outcome"]:
            rows[-1] += [cell["outcome"], *[""] * 6]
            continue
        long, short = cell["long"], cell["short"]
        said = long["budget"] + short["growth"]
        sizes = [long["budget"], short["growth"]]
        sizes += [long[name] for name in ("live", "growth", "stays", "released")]
        rows[-1] += [*(f"{size / MIB:.0f}" for size in sizes), f"{long['growth'] / said:.2f}"]
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
