"""Operations whose result has a shape that depends on the numbers in a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node


def shaped_by_numbers(graph: GraphModule) -> str | None:
    """The first such operation of a traced graph, e.g. an index by a boolean mask; None without.

    A trace has the shapes of one evaluation in it: with other numbers it would fail, or divide a
    mean by another count.
    """
    return next((str(node.target) for node in graph.graph.nodes if _is_one(node)), None)


def _is_one(node: Node) -> bool:
    tags: Any = getattr(node.target, "tags", ())
    if torch.Tag.dynamic_output_shape not in tags:
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    return any(_dtype(own) in (torch.bool, torch.uint8) for own in node.all_input_nodes[1:])


def _dtype(node: Node) -> torch.dtype | None:
    return getattr(node.meta.get("tensor_meta"), "dtype", None)
