"""Dataclasses that hold tensors are compared by identity: `==` of tensors is no truth value."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import odeopt_plugins
import pytest
import torch
from torch import Tensor

import odeopt
from odeopt.solver.error_control import Tolerances
from odeopt.testing import Quadratic

STRUCTURE = {"Ravel.spec", "Partition.spec", "Partition.rest"}
"""Of no declared type, but the structure of a tree and what is no tensor in it."""


def classes():
    """Every dataclass of the packages."""
    found = {}
    for package in (odeopt, odeopt_plugins):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2].startswith(("__main__", "test_")):
                continue
            for entry in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(entry) and dataclasses.is_dataclass(entry):
                    found[f"{entry.__module__}.{entry.__qualname__}"] = entry
    return found


def holds_tensors(hint):
    """Whether a value of that type may be, or be made of, tensors that == would compare."""
    if hint is Any or isinstance(hint, TypeVar):
        return True
    origin = typing.get_origin(hint)
    if origin is Callable:
        return False
    if origin is not None or not inspect.isclass(hint):
        return any(map(holds_tensors, typing.get_args(hint)))
    if issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return any(map(holds_tensors, typing.get_type_hints(hint).values()))
    return issubclass(hint, Tensor)


def compared_tensors(entry):
    """The fields of a dataclass that hold tensors and that its generated == compares."""
    if not entry.__dataclass_params__.eq or "__eq__" not in vars(entry):
        return []
    hints = typing.get_type_hints(entry)
    return [
        part.name
        for part in dataclasses.fields(entry)
        if part.compare and holds_tensors(hints[part.name])
        if f"{entry.__name__}.{part.name}" not in STRUCTURE
    ]


CLASSES = classes()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_tensors_are_not_compared_by_a_generated_equality(name):
    assert compared_tensors(CLASSES[name]) == [], "give it eq=False, or the field compare=False"


@dataclasses.dataclass
class Comparing:
    count: int
    call: Callable[[Tensor], Tensor]
    states: dict[str, Tensor | None]
    anything: Any
    gradient: odeopt.solver.StepGradient
    left_out: Tensor = dataclasses.field(compare=False)


def test_fields_with_tensors_are_found():
    assert compared_tensors(Comparing) == ["states", "anything", "gradient"]
    assert len(CLASSES) > 50


def test_results_are_compared_by_identity(device):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda u, b: (u**2).sum()))
    call = opt.value_and_grad(lambda u, b: u.sum())
    grid = odeopt.TimeGrid.from_lr(0.1, 2)
    first, second = (call(torch.ones(2, device=device), None, grid, None) for _ in range(2))
    assert first == first  # noqa: PLR0124
    assert first != second
    assert first.grads != second.grads
    assert len({first, second, first}) == 2


def test_numbers_and_settings_are_still_compared_by_value():
    controller = odeopt.PIController()
    assert Tolerances(1e-3, 1e-3, controller, None, 5) == Tolerances(
        1e-3, 1e-3, controller, None, 5
    )
    assert odeopt.Safety() == odeopt.Safety()
    assert odeopt.Host() == odeopt.Host()
    assert odeopt.Stats(steps=3) == odeopt.Stats(steps=3) != odeopt.Stats(steps=4)


def test_a_problem_can_be_compared_and_hashed():
    first, second = (Quadratic.from_spectrum([1.0, 2.0]) for _ in range(2))
    assert first != second
    assert {first: 1}[first] == 1
