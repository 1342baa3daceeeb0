"""The Alpine regression tasks of "Meta-Learning with Adjoint Methods" (section 5.1).

A task is to learn `f(x) = sum_i |x_i sin(x_i + p_i) + x_i / 10|` on [-10, 10]^2. In the paper's
text the two phases are drawn independently from ±5 pi/12; in the code released with it one such
phase is drawn for both, and pi is added. Both are here, as the protocols "text" and "code".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Generator, Tensor

from benchmarks.problems import models
from benchmarks.problems.functions import Family, Function, Standardisation, join, uniform
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Task, stack

MODEL = models.mlp([2, 32, 32, 1])
"""The paper's network: 1185 parameters."""

POOL_SEED = 2023
POOL_TASKS = 200
POOL_POINTS = 2000
LARGEST_SHIFT = 5 * math.pi / 12


def evaluate(phases: Tensor, x: Tensor) -> Tensor:
    """Values [n, 1] at points [n, 2] for two phases."""
    return (x * torch.sin(x + phases) + 0.1 * x).abs().sum(-1, keepdim=True)


def draw_function(protocol: str, generator: Generator) -> Function:
    """Draw the phases of a function.

    Raises:
        KeyError: The protocol is neither "code" nor "text".
    """
    return {"code": _draw_released, "text": _draw_written}[protocol](generator)


def family(protocol: str) -> Family:
    """The functions of a protocol."""
    return Family(partial(draw_function, protocol), radius=10.0)


def task(seed: int, protocol: str, shots: int = 100) -> Task:
    """A task in standardised units.

    Args:
        seed: Fixes the function and the points.
        protocol: "code" or "text".
        shots: How many training points, and how many other points for validation.
    """
    generator, functions = Generator().manual_seed(seed), family(protocol)
    function, scaled = functions.draw(generator), standardisation(protocol)
    return Task(
        scaled(functions.sample(function, shots, generator)),
        scaled(functions.sample(function, shots, generator)),
    )


def tasks(seeds: Sequence[int], protocol: str, shots: int = 100) -> Task:
    """The tasks of some seeds, stacked along a leading dimension."""
    return stack([task(seed, protocol, shots) for seed in seeds])


def initial_parameters(seed: int) -> Parameters:
    """Random parameters of `MODEL`."""
    return MODEL.init(seed)


@cache
def standardisation(protocol: str) -> Standardisation:
    """The one standardisation of all tasks of a protocol, fitted on 200 tasks of its own."""
    generator, functions = Generator().manual_seed(POOL_SEED), family(protocol)
    drawn = [functions.draw(generator) for _ in range(POOL_TASKS)]
    return Standardisation.of(join([functions.sample(f, POOL_POINTS, generator) for f in drawn]))


def _draw_released(generator: Generator) -> Function:
    shift = uniform(-LARGEST_SHIFT, LARGEST_SHIFT, generator)
    return partial(evaluate, torch.full((2,), math.pi + shift, dtype=torch.float64))


def _draw_written(generator: Generator) -> Function:
    shifts = [uniform(-LARGEST_SHIFT, LARGEST_SHIFT, generator) for _ in range(2)]
    return partial(evaluate, torch.tensor(shifts, dtype=torch.float64))
