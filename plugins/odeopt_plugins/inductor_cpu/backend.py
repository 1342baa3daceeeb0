"""Inductor with settings, rewrites and a tanh that suit kernels of small networks on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from typing_extensions import override

from odeopt import BACKENDS, CompilationError
from odeopt.engine.compile import Compiled, Inductor
from odeopt_plugins.inductor_cpu.narrow_products import swap_narrow_products
from odeopt_plugins.inductor_cpu.processor import on_amd
from odeopt_plugins.inductor_cpu.tanh import lowerings


@BACKENDS.register("inductor-cpu")
class InductorCPU(Inductor):
    """Inductor, faster for kernels of small networks on a CPU: 1.4 to 1.5 times, for perceptrons.

    The code that calls operations in turn is C++ too, tanh is made in another way, and on
    processors of AMD products with few columns are transposed. Kernels that this does not suit are
    compiled as "inductor" does it. It stands on private interfaces of Inductor, which
    `docs/torch-interfaces.md` lists.

    Raises:
        CompilationError: if tensors are not on a CPU, or there is no C++ compiler.
    """

    @override
    def compile_pure(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Compiled:
        device = inputs[0].device
        if device.type != "cpu":
            raise CompilationError(
                f"compile='inductor-cpu' was given tensors on {device}; it is for those on a CPU:"
                " use compile='inductor'."
            )
        if on_amd():
            swap_narrow_products(graph)
        with suppress(Exception), for_small_kernels():  # not made for every operation there is
            return super().compile_pure(graph, inputs)
        return super().compile_pure(graph, inputs)


@contextmanager
def for_small_kernels() -> Generator[None]:
    """What is in force while a kernel is compiled."""
    from torch._inductor import config, lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    settings = {"cpp_wrapper": True, "aot_inductor.metadata": {"odeopt": mark()}}
    log = logging.getLogger("torch._inductor.ir")  # warns that operations are as they are
    level = log.level
    with ExitStack() as stack:
        stack.enter_context(config.patch(settings))
        stack.enter_context(mock.patch.dict(lowering.lowerings, lowerings()))
        stack.callback(log.setLevel, level)
        log.setLevel(logging.ERROR)
        yield


def mark() -> str:
    """Tells kernels on disk apart, which are found by their graphs and settings otherwise."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    sources = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{'AMD' if on_amd() else 'other'}, {sources}"
