"""The command `python -m benchmarks`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer

from benchmarks import catalogue
from benchmarks.harness.registry import IncompleteError, Preset, Settings, UnknownCellError
from benchmarks.harness.store import ResultStore
from benchmarks.problems.data_files import BrokenDataError, MissingDataError
from odeopt.tools.keywords import unknown

app = typer.Typer(add_completion=False)


class Device(StrEnum):
    """Where to compute."""

    CPU = "cpu"
    CUDA = "cuda"


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="The benchmark; without it, a list.")] = None,
    preset: Annotated[Preset, typer.Option(help="How large the run is.")] = Preset.QUICK,
    results: Annotated[Path | None, typer.Option(help="Default: results/NAME.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the data sets.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.CPU,
    only: Annotated[str, typer.Option(help="Compute cells whose key contains this only.")] = "",
) -> None:
    """Run a benchmark, resuming an interrupted one, or list them all."""
    benchmarks = {benchmark.name: benchmark for benchmark in catalogue.BENCHMARKS}
    if name is None:
        width = max(map(len, benchmarks), default=0)
        lines = [f"{one.name:<{width}}  {one.summary}" for one in benchmarks.values()]
        typer.echo("\n".join(lines) or "no benchmarks are registered")
        return
    if name not in benchmarks:
        _fail(unknown("benchmark", [name], list(benchmarks)), code=2)
    benchmark = benchmarks[name]
    if preset not in benchmark.presets:
        known = ", ".join(benchmark.presets)
        _fail(f"{name} has no preset {preset.value!r}; it has {known}", code=2)
    if device is Device.CUDA and not torch.cuda.is_available():
        _fail("this machine has no CUDA device that torch can use", code=2)
    store = ResultStore(results or Path("results") / name)
    _check_writable(store.directory)
    settings = Settings(preset, store, data or default_data(), torch.device(device.value), only)
    try:
        benchmark.run(settings)
    except (BrokenDataError, MissingDataError) as error:
        _fail(str(error), code=1)
    except IncompleteError as error:
        typer.echo(str(error))
    except UnknownCellError as error:
        _fail(str(error), code=2)
    except OSError as error:
        if store.directory not in Path(os.fsdecode(error.filename or "")).parents:
            raise
        _fail(_unwritable(store.directory, error), code=1)
    typer.echo(f"results: {store.directory}")


def default_data() -> Path | None:
    """The data folder: ODEOPT_DATA, else shared/data beside the checkout, else None."""
    named = os.environ.get("ODEOPT_DATA")
    if named:
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def _check_writable(folder: Path) -> None:
    """Fail before anything is computed for a folder that cannot be written to; make nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        _fail(_unwritable(folder, f"{there} is no folder"), code=1)
    if not os.access(there, os.W_OK | os.X_OK):
        _fail(_unwritable(folder, f"{there} may not be written to"), code=1)


def _unwritable(folder: Path, why: object) -> str:
    return f"results cannot be written to {folder}: {why}. Give another folder with --results."


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
