"""How inductor makes an operation, in its own representation of programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Lowering = Callable[..., Any]
"""Of arguments and result of inductor's own representation."""

aten: Any = torch.ops.aten


def known() -> dict[Any, Lowering]:
    """The lowerings that are in force."""
    from torch._inductor import lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    return lowering.lowerings


def apply(operation: Any, *args: Any) -> Any:
    """The result of an operation of torch."""
    return known()[operation](*args)


def torchs_own(operation: Any) -> Lowering:
    """A call of the operation in torch's library."""
    from torch._inductor import lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    return lowering.fallback_handler(operation, add_to_fallback_set=False)
