"""Every registered entry passes its suite: `pytest --pyargs odeopt.testing`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odeopt.checkpoint.store import Device, Disk, Host, Tier
from odeopt.errors import CompilationError
from odeopt.inner.rule import UpdateRule
from odeopt.inner.stream import Stream
from odeopt.registry import ADJOINTS, BACKENDS, CHECKPOINTS, FIELDS, METHODS, SOLVERS
from odeopt.solver.error_control import PIController
from odeopt.solver.stabilized import CONTROLLER
from odeopt.testing import (
    check_adjoint,
    check_backend,
    check_compiled,
    check_controller,
    check_field,
    check_method,
    check_rule,
    check_schedule,
    check_solver,
    check_stream,
    check_tier,
)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each kind of device that there is."""
    return torch.device(request.param)


@pytest.mark.parametrize("name", FIELDS.names())
def test_field(name: str, device: torch.device) -> None:
    make = FIELDS.example(name)
    is_rule = isinstance(make(lambda params, batch: params), UpdateRule)
    (check_rule if is_rule else check_field)(make, device)


@pytest.mark.parametrize("name", FIELDS.names())
def test_compiled(name: str, device: torch.device) -> None:
    check_compiled(FIELDS.example(name), device=device)


@pytest.mark.parametrize("name", SOLVERS.names())
def test_solver(name: str, device: torch.device) -> None:
    check_solver(SOLVERS.example(name)(), device)


@pytest.mark.parametrize("name", ADJOINTS.names())
def test_adjoint(name: str, device: torch.device) -> None:
    check_adjoint(ADJOINTS.example(name)(), device)


@pytest.mark.parametrize("name", BACKENDS.names())
def test_backend(name: str, device: torch.device) -> None:
    try:
        check_backend(BACKENDS.example(name)(), device)
    except CompilationError as error:  # no C++ compiler, or another device
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CHECKPOINTS.names())
def test_schedule(name: str) -> None:
    check_schedule(CHECKPOINTS.example(name)())


@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str, device: torch.device) -> None:
    check_method(METHODS.example(name), device)


@pytest.mark.parametrize("controller", [PIController(), PIController(per_task=False), CONTROLLER])
def test_controller(controller: PIController, device: torch.device) -> None:
    check_controller(controller, device=device)


@pytest.mark.parametrize("name", ["device", "host", "disk", "resumable"])
def test_tier(tmp_path: Path, name: str, device: torch.device) -> None:
    tiers: dict[str, Tier] = {
        "device": Device(), "host": Host(), "disk": Disk(tmp_path),
        "resumable": Disk(tmp_path, resume=True),
    }  # fmt: skip
    check_tier(tiers[name], device)


@pytest.mark.parametrize(
    "name", ["minibatches", "in order", "with a random loss", "stacked", "constant", "dataset"]
)
def test_stream(name: str, device: torch.device) -> None:
    x, y = torch.arange(60.0, device=device).reshape(20, 3), torch.arange(20, device=device)
    streams = {
        "minibatches": lambda: Stream.minibatches((x, y), 6, seed=0),
        "in order": lambda: Stream.minibatches((x, y), 6, seed=0, shuffle=False),
        "with a random loss": lambda: Stream.minibatches((x, y), 6, seed=0, random_loss=True),
        "stacked": lambda: Stream.stacked((x, y)),
        "constant": lambda: Stream.constant((x, y), seed=0),
        "dataset": lambda: Stream.from_dataset(list(zip(x, y, strict=True)), 6, seed=0),
    }
    check_stream(streams[name](), device=device)
