"""Every registered entry passes its suite: `pytest --pyargs odeopt.testing`."""

from __future__ import annotations

import pytest
import torch

from odeopt.registry import ADJOINTS, CHECKPOINTS, FIELDS, METHODS, SOLVERS
from odeopt.rule.base import UpdateRule
from odeopt.testing import (
    check_adjoint,
    check_field,
    check_method,
    check_rule,
    check_schedule,
    check_solver,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FIELDS.names())
def test_field(name: str, device: str) -> None:
    make = FIELDS.example(name)
    check = (
        check_rule if isinstance(make(lambda params, batch: params), UpdateRule) else check_field
    )
    check(make, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SOLVERS.names())
def test_solver(name: str, device: str) -> None:
    check_solver(SOLVERS.example(name)(), torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ADJOINTS.names())
def test_adjoint(name: str, device: str) -> None:
    check_adjoint(ADJOINTS.example(name)(), torch.device(device))


@pytest.mark.parametrize("name", CHECKPOINTS.names())
def test_schedule(name: str) -> None:
    check_schedule(CHECKPOINTS.example(name)())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str, device: str) -> None:
    check_method(METHODS.example(name), torch.device(device))
