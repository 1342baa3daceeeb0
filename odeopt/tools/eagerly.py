"""Calls that torch.compile leaves alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(call: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile out of a call that a compiled function makes: its graph breaks there.

    Sweeps are long loops with checks and gradients of their own inside, which torch.compile takes
    apart function by function, slowly, and cannot compile. Their kernels are compiled with
    `ODEOptimizer(compile=...)`.
    """

    @functools.wraps(call)
    def call_or_break(*args: P.args, **keywords: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # only here, as torch.compiler.disable loads the compiler
            alone: Callable[P, R] = torch.compiler.disable(call)  # pyright: ignore
            return alone(*args, **keywords)
        return call(*args, **keywords)

    return call_or_break
