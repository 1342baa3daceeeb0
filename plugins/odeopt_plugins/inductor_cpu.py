"""The compile backend "inductor-cpu": Inductor, tuned for kernels of small networks on a CPU.

Its settings, its products of matrices with few columns and its tanh are its own.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from typing_extensions import override

from odeopt import BACKENDS, CompilationError
from odeopt.engine.compile import Compiled, Inductor

Lowering = Callable[..., Any]
"""How Inductor makes an operation, in its own representation of programs."""

NARROW = 8
"""Up to so many columns a product of matrices is narrow."""

TANH: Any = torch.ops.aten.tanh.default

FRACTIONS = {
    torch.float32: ((945, 105, 1), (945, 420, 15)),
    torch.float64: ((2027025, 270270, 6930, 36), (2027025, 945945, 51975, 630, 1)),
}
"""Numerators and denominators of tanh(x) / x in powers of x squared, the first ones first.

They are convergents of Lambert's continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))), with
relative errors of 8e-10 and 6e-18 up to `NEAR`.
"""

NEAR, FAR = 0.625, 20.0
"""Up to where the fraction is used, and from where tanh is one."""


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


@cache
def on_amd() -> bool:
    """Whether the processor is AMD's; MKL is made for Intel's."""
    table = Path("/proc/cpuinfo")
    description = table.read_text() if table.exists() else platform.processor()
    return "AuthenticAMD" in description


@contextmanager
def for_small_kernels() -> Generator[None]:
    """What is in force while a kernel is compiled."""
    from torch._inductor import config, lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    settings = {"cpp_wrapper": True, "aot_inductor.metadata": {"odeopt": mark()}}
    log = logging.getLogger("torch._inductor.ir")  # warns that operations are as they are
    level = log.level
    with config.patch(settings), mock.patch.dict(lowering.lowerings, {TANH: tanh_lowering()}):
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def mark() -> str:
    """Tells kernels on disk apart, which are found by their graphs and settings otherwise."""
    source = sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{'AMD' if on_amd() else 'other'}, {source}"


def swap_narrow_products(graph: torch.fx.GraphModule) -> None:
    """Write AB as (B'A')' where B has two to eight columns and A far more rows, in place.

    Such are the gradients w.r.t. the weights of a layer with few inputs, for which MKL took two to
    six times as long on a processor of AMD.
    """
    aten: Any = torch.ops.aten

    def transposed(matrix: Any) -> torch.fx.Node:
        return graph.graph.call_function(aten.transpose.int, (matrix, -2, -1))

    for node in list(graph.graph.nodes):
        if node.target not in (aten.mm.default, aten.bmm.default):
            continue
        *_, rows, columns = node.meta["tensor_meta"].shape
        if not (1 < columns <= NARROW and rows >= 4 * columns):
            continue
        with graph.graph.inserting_before(node):
            first, second = map(transposed, node.args)
            swapped = transposed(graph.graph.call_function(node.target, (second, first)))
            order: Any = {"memory_format": torch.contiguous_format}  # which later views may rely on
            product = graph.graph.call_function(aten.clone.default, (swapped,), order)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


def tanh_lowering() -> Lowering:
    """How tanh is made.

    On Intel's processors it is torch's own, which calls MKL: a quarter of the time of Inductor's.
    On AMD's, where MKL takes twice the time, it is generated: a fraction if x is small, else
    (e - 1) / (e + 1) with e = exp(2 |x|).
    """
    from torch._inductor import lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    if not on_amd():
        return lowering.fallback_handler(TANH, add_to_fallback_set=False)
    inductors_own = lowering.lowerings[TANH]

    def tanh(x: Any) -> Any:
        dtype = x.get_dtype()
        if dtype not in FRACTIONS:
            return inductors_own(x)
        return lowering.make_pointwise(_pointwise_tanh(dtype))(x)

    return tanh


def _pointwise_tanh(dtype: torch.dtype) -> Callable[[Any], Any]:
    from torch._inductor.virtualized import ops as virtual  # noqa: PLC0415  # pyright: ignore

    ops: Any = virtual

    def number(value: float) -> Any:
        return ops.constant(float(value), dtype)

    def polynomial(coefficients: Sequence[int], at: Any) -> Any:
        *others, value = map(number, coefficients)
        for coefficient in reversed(others):
            value = ops.add(ops.mul(value, at), coefficient)
        return value

    def tanh(x: Any) -> Any:
        size = ops.minimum(ops.abs(x), number(FAR))
        square, power = ops.mul(size, size), ops.exp(ops.add(size, size))
        top, bottom = (polynomial(own, square) for own in FRACTIONS[dtype])
        near = ops.lt(size, number(NEAR))
        over = ops.where(near, ops.mul(size, top), ops.sub(power, number(1)))
        under = ops.where(near, bottom, ops.add(power, number(1)))
        return ops.copysign(ops.truediv(over, under), x)

    return tanh
