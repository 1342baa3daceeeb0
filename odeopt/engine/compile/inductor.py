"""A recorded kernel compiled by Inductor, without Dynamo."""

from __future__ import annotations

import copy
import shutil
from operator import attrgetter

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import override

from odeopt.engine.compile.backend import Backend, Compiled
from odeopt.errors import CompilationError
from odeopt.registry import BACKENDS


@BACKENDS.register("inductor")
class Inductor(Backend):
    """Fuses operations into loops of C++ or Triton; takes seconds per kernel, and a C++ compiler.

    Compiled kernels are found again in Inductor's cache on disk by later processes.
    """

    @override
    def compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
        _check_compiler(inputs[0].device)
        held = lift_constants(graph)
        spell_out_factors(graph)
        run = self.compile_pure(graph, [*inputs, *held])
        return (lambda *tensors: run(*tensors, *held)) if held else run

    def compile_pure(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
        """Compile a graph that holds no tensors; backends that stand on Inductor add to it."""
        from torch.fx.experimental.symbolic_shapes import (  # noqa: PLC0415  (slow to import)
            ShapeEnv,
        )

        mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # else no cache on disk
        with tracing(TracingContext(mode)):
            return torch._inductor.compile(copy.deepcopy(graph), inputs)  # type: ignore[return-value]  # noqa: SLF001  # pyright: ignore


def _check_compiler(device: torch.device) -> None:
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415  (slow to import)  # pyright: ignore

    try:
        path = shutil.which(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        path = None
    if path is None:
        raise CompilationError(
            f"Inductor needs a C++ compiler such as g++ (for the {device.type} device) and none"
            " was found: install one or set the environment variable CXX, or use compile='trace',"
            " which needs none."
        )


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
        value = attrgetter(name)(graph)
        if not isinstance(value, Tensor):  # the body of a loop or a branch
            continue
        if name not in inputs:
            with graph.graph.inserting_after(last):
                last = inputs[name] = graph.graph.placeholder(f"held_{len(inputs)}")
            last.meta = dict(node.meta)  # inductor asks for the fake tensor there
            held[name] = value.detach()
        node.replace_all_uses_with(inputs[name])
        graph.graph.erase_node(node)
    for name in held:  # what a module still has is passed on, used or not
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)
    graph.recompile()
    return list(held.values())


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
