"""A traced graph compiled by inductor."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from odeopt.engine.compile.lowering import kind_of_lowerings, own_lowerings
from odeopt.engine.compile.lowering.processor import on_amd
from odeopt.engine.compile.rewrites import (
    holds_something,
    lift_constants,
    spell_out_factors,
    swap_narrow_products,
)
from odeopt.errors import CompilationError

Flat = Callable[..., Sequence[Tensor]]


def compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Flat:
    """A function of the same inputs that returns a sequence.

    Raises:
        CompilationError: there is no C++ compiler.
    """
    device = inputs[0].device
    _need_compiler(device)
    held = lift_constants(graph)
    run = _compile_for(device, graph, [*inputs, *held])
    return (lambda *tensors: run(*tensors, *held)) if held else run


def _compile_for(device: torch.device, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Flat:
    spell_out_factors(graph)
    if device.type == "cpu":
        if on_amd():
            swap_narrow_products(graph)
        with suppress(Exception), _for_small_kernels():  # not made for every operation there is
            return _compile(graph, inputs)
    return _compile(graph, inputs)


def _compile(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Flat:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: PLC0415  (slow to import)

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # without it no disk cache
    with tracing(TracingContext(mode)):
        run: Flat = torch._inductor.compile(copy.deepcopy(graph), inputs)  # type: ignore[assignment]  # noqa: SLF001  # pyright: ignore
    return _without_wrappers(run, inputs, graph)


@contextmanager
def _for_small_kernels() -> Generator[None]:
    """Settings with which kernels of small networks take less time: 1.6 times, for a perceptron.

    The code that calls the operations in turn is C++ too, and some operations are torch's own.
    """
    from torch._inductor import config, lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    settings = {"cpp_wrapper": True, "aot_inductor.metadata": {"odeopt": kind_of_lowerings()}}
    log = logging.getLogger("torch._inductor.ir")  # warns that operations are as they are
    level = log.level
    with ExitStack() as stack:
        stack.enter_context(config.patch(settings))
        stack.enter_context(mock.patch.dict(lowering.lowerings, own_lowerings()))
        stack.callback(log.setLevel, level)
        log.setLevel(logging.ERROR)
        yield


def _without_wrappers(run: Flat, inputs: list[Tensor], graph: torch.fx.GraphModule) -> Flat:
    """The compiled code itself, if it gives the same as the layers that torch puts around it.

    They guard against Dynamo, restore views of inputs and keep metrics, which takes 15 microseconds
    a call; kernels that return no input as it is need none of them. They also pass on what a graph
    holds: called without, the code would read inputs that are not there. Of an operation that fails
    the code says only in which line of C++ it is: the graph, run as it was traced, then raises what
    the operation itself raises.
    """
    if holds_something(graph):
        return run
    inner: Any = run
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    code = getattr(inner, "current_callable", None)
    if code is None:
        return run

    def direct(*tensors: Tensor) -> Sequence[Tensor]:
        try:
            return code(list(tensors))
        except RuntimeError:
            return graph(*tensors)

    try:
        pairs = zip(direct(*inputs), run(*inputs), strict=True)
        same = all(torch.equal(own, other) for own, other in pairs)
    except Exception:  # another calling convention than that of the torch versions known
        return run
    return direct if same else run


def _need_compiler(device: torch.device) -> None:
    from torch._inductor import cpp_builder, exc  # noqa: PLC0415  (slow to import)  # pyright: ignore

    try:
        found = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        found = None
    if found is None or shutil.which(found) is None:
        raise CompilationError(
            f"compile='inductor' needs a C++ compiler such as g++ (for the {device.type} device)"
            " and none was found: install one or set the environment variable CXX, or use"
            " compile='trace', which needs none."
        )
