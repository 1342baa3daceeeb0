"""What becomes of a recorded kernel: the seam for compile backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from typing_extensions import override

from odeopt.registry import BACKENDS
from odeopt.tools.keywords import KnownKeywords

Compiled = Callable[..., Sequence[Tensor]]
"""A function of a graph's inputs that returns its outputs."""


def record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The ATen operations of a function of tensors, as a graph.

    Inputs that are the same tensor would be one input of the graph.
    """
    return make_fx(function)(*inputs)


class Backend(KnownKeywords, ABC):
    """Makes a function of a recorded kernel; one backend makes all kernels of an optimiser.

    What it makes is compared with eager execution before it is used. `compile=` of `ODEOptimizer`
    takes the name under which it is registered in `odeopt.BACKENDS`.
    """

    @abstractmethod
    def compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
        """Make a function of the same inputs as the graph.

        A loss may use tensors that are none of its arguments. They are attributes of the graph,
        and what becomes of them in place is to be seen by later calls. The graph may be changed.

        Args:
            graph: a kernel as a graph of ATen operations, with the shapes of the inputs in it;
                it returns a flat list of tensors.
            inputs: what it was recorded with, contiguous, all on one device.

        Raises:
            CompilationError: if something is missing that the user can install or set. Whatever
                else it raises makes the kernel run eagerly, with a warning that gives the reason.
        """


@BACKENDS.register("trace")
class Trace(Backend):
    """Runs the operations of the graph one by one; compiles in no time and needs no compiler."""

    @override
    def compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
        del inputs
        return graph
