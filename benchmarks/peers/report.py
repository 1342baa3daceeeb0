"""The cells and the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import outline, processes
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.peers import apart, figures, sections, stiff, together
from benchmarks.peers.contenders import KERNELS, OURS
from benchmarks.peers.sizes import SIZES, Sizes, Stiff
from benchmarks.peers.targets import Aim

NAME = "peers"
REVISION = 2
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

PATIENCE = 20.0
"""How many times as long as one answer a process with several contenders may take."""

TASKS = 5


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    mark = outline.mark(settings, REVISION, sizes)
    with TemporaryDirectory() as cache:
        done = outline.compute(settings, NAME, cells(settings, sizes, cache), mark)
    done.environment["threads"] = 1
    found = [
        _head(sizes),
        sections.claims(done.cells),
        sections.peers_ahead(done.cells, sizes.points),
        figures.all_plots(done.cells, sizes, settings),
        sections.overhead(done.cells, sizes) if sizes.overhead else "",
        _precision(done.cells, sizes, settings),
        sections.stiff(done.cells, sizes) if sizes.stiff else "",
        sections.points(done.cells, sizes),
        sections.missing(done.cells),
    ]
    outline.write(settings, "The same meta-gradient by others", done, list(filter(None, found)))


def cells(settings: Settings, sizes: Sizes, cache: str) -> list[Cell]:
    """One per point, and those that are measured in one process.

    Args:
        settings: For the device.
        sizes: Of the run.
        cache: The folder of compiled kernels, shared by all processes of the run.
    """
    device = str(settings.device)
    found = [
        Cell(point.key, partial(apart.compute, point, sizes.limits, device, cache))
        for point in sizes.points
    ]
    for steps in sizes.overhead:
        entries = ((OURS, None), (KERNELS, None))
        aim = Aim("mlp", TASKS, steps, device)
        found.append(Cell(f"overhead steps={steps}", _together(entries, aim, sizes, cache)))
    if sizes.precision:
        aim = Aim("mlp", TASKS, sizes.precision_steps, device)
        found.append(Cell("precision", _together(sizes.precision, aim, sizes, cache)))
    found += [Cell(f"stiff T={run.t1:g}", partial(_stiff, run, sizes, device, cache))
              for run in sizes.stiff]  # fmt: skip
    return found


def _together(
    entries: tuple[tuple[str, float | None], ...], aim: Aim, sizes: Sizes, cache: str
) -> Callable[[], dict[str, Any]]:
    job = together.Job(entries, aim, "float32", sizes.paired_rounds)
    return partial(
        processes.run, together.measure, job, limit=PATIENCE * sizes.limits.start,
        variables={apart.CACHE: cache},
    )  # fmt: skip


def _stiff(run: Stiff, sizes: Sizes, device: str, cache: str) -> dict[str, Any]:
    job = stiff.Job(run.t1, run.tolerances, device)
    limit = PATIENCE * sizes.limits.start
    variables = {apart.CACHE: cache}
    return processes.run(stiff.measure, job, limit=limit, variables=variables)


def _precision(found: dict[str, dict[str, Any]], sizes: Sizes, settings: Settings) -> str:
    if not sizes.precision:
        return ""
    figures.precision(found["precision"], settings)
    return sections.precision(found["precision"])


def _head(sizes: Sizes) -> str:
    limits = sizes.limits
    return f"""The gradient of the mean validation loss of several tasks w.r.t. the initialisation
that their inner optimisations share. Target A is the gradient of N steps of gradient descent,
target B that of the flow at the same horizon; errors are relative, to references in float64: a
hand-written adjoint loop for A, RK4 with its exact adjoint for B. Every contender stands for one of
them; "error to A" of one that stands for B says how far apart the two are, and the other way
round.

Every contender of a point is a process of its own, on one thread. Each first starts ("start":
building, compiling and a run with one step; kernels that another contender of this run has
compiled before are found in the compiler's cache) and makes one run, during which the growth of
resident memory is read. Then all are asked in turn for one timed run, in {limits.rounds} rounds;
given are the median, the least and the greatest, and as ratios the medians of those within a round.
One whose runs would take more than about {limits.seconds:g} seconds together makes fewer. Peaks are
those of live tensors above those before the call, recorded in a run of its own. A process may take
{limits.memory_gib:g} GiB beyond what it has after its start, and {limits.start:g} seconds for an
answer.

odeopt, the vmapped loops, torchdiffeq and the bare kernels have all tasks in memory together;
higher, TorchOpt and unrolled autograd one after the other, as their users write it. `Binomial`
keeps 2 sqrt(N) states, `Density` intervals of sqrt(N) steps."""
