"""What becomes of a traced graph: run as it is, or compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeopt.engine.compile.inductor import Flat, compile_graph


def _as_traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Flat:
    del inputs
    return graph


BACKENDS: dict[str, Callable[[torch.fx.GraphModule, list[Tensor]], Flat]] = {
    "trace": _as_traced,
    "inductor": compile_graph,
}
"""What becomes of a traced graph."""
