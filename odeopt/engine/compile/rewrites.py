"""Rewriting a traced graph, in place, before it is compiled."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor


def lift_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its last inputs, in place, and return them.

    They are what a loss uses that is not one of its arguments. Compiled code takes them as inputs
    too, from a wrapper around it, and a copy of the graph would not see them change.
    """
    held: dict[str, Tensor] = {}
    inputs: dict[str, torch.fx.Node] = {}
    *_, last = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in graph.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        found = attrgetter(name)(graph)
        if not isinstance(found, Tensor):  # the body of a loop or a branch
            continue
        if name not in inputs:
            with graph.graph.inserting_after(last):
                last = inputs[name] = graph.graph.placeholder(f"held_{len(inputs)}")
            last.meta = dict(node.meta)  # inductor asks for the fake tensor there
            held[name] = found.detach()
        node.replace_all_uses_with(inputs[name])
        graph.graph.erase_node(node)
    for name in held:  # what a module still has is passed on, used or not
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)
    graph.recompile()
    return list(held.values())


def holds_something(graph: torch.fx.GraphModule) -> bool:
    """Whether a graph has parts that are not operations on its inputs."""
    return bool(graph.graph.find_nodes(op="get_attr") or [*graph.parameters(), *graph.buffers()])


def spell_out_factors(graph: torch.fx.GraphModule) -> None:
    """Write alpha and beta as multiplications, in place.

    Inductor of torch 2.13 turns an addition to a matrix product into one operation and drops
    these factors on the way (pytorch/pytorch issue 167313).
    """
    for node in list(graph.graph.nodes):
        factors = {name: node.kwargs.get(name, 1) for name in ("alpha", "beta")}
        if node.op != "call_function" or all(factor == 1 for factor in factors.values()):
            continue
        where = {"beta": 0, "alpha": 1}  # add(x, alpha y), addmm(beta x, alpha y, z)
        args = list(node.args)
        with graph.graph.inserting_before(node):
            for name, place in where.items():
                if factors[name] != 1:
                    product = (args[place], factors[name])
                    args[place] = graph.graph.call_function(torch.ops.aten.mul.Tensor, product)
        node.args = tuple(args)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in where}
    graph.recompile()


NARROW = 8
"""Up to so many columns a product of matrices is narrow."""


def swap_narrow_products(graph: torch.fx.GraphModule) -> None:
    """Write AB as (B'A')' where B has two to eight columns and A far more rows, in place.

    Such are the gradients w.r.t. the weights of a layer with few inputs, for which MKL took two to
    six times as long on a processor of AMD.
    """
    aten: Any = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target not in (aten.mm.default, aten.bmm.default):
            continue
        *_, rows, columns = node.meta["tensor_meta"].shape
        if not (1 < columns <= NARROW and rows >= 4 * columns):
            continue
        with graph.graph.inserting_before(node):
            first, second = (_transposed(graph, own) for own in node.args)
            swapped = graph.graph.call_function(node.target, (second, first))
            order: Any = {"memory_format": torch.contiguous_format}  # which later views may rely on
            back = _transposed(graph, swapped)
            found = graph.graph.call_function(aten.clone.default, (back,), order)
        node.replace_all_uses_with(found)
        graph.graph.erase_node(node)
    graph.recompile()


def _transposed(graph: torch.fx.GraphModule, matrix: Any) -> torch.fx.Node:
    return graph.graph.call_function(torch.ops.aten.transpose.int, (matrix, -2, -1))
