"""A recorded kernel compiled by Inductor, without Dynamo."""

from __future__ import annotations

import copy
import shutil

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import override

from odeopt.engine.compile.backend import Backend, Compiled
from odeopt.engine.compile.rewrites import lift_constants, spell_out_factors
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
        found = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        found = None
    if found is None or shutil.which(found) is None:
        raise CompilationError(
            f"Inductor needs a C++ compiler such as g++ (for the {device.type} device) and none"
            " was found: install one or set the environment variable CXX, or use compile='trace',"
            " which needs none."
        )
