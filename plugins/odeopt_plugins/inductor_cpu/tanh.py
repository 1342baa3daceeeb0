"""tanh, made otherwise than Inductor would: MKL's on Intel's processors, generated on AMD's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from odeopt_plugins.inductor_cpu.processor import on_amd

Lowering = Callable[..., Any]
"""How Inductor makes an operation, in its own representation of programs."""

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


def lowerings() -> dict[Any, Lowering]:
    """By operation.

    On Intel's processors it is torch's own, which calls MKL: a quarter of the time of Inductor's.
    On AMD's, where MKL takes twice the time, it is generated from a fraction and one exponential.
    """
    from torch._inductor import lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    if on_amd():
        return {TANH: generated_tanh()}
    return {TANH: lowering.fallback_handler(TANH, add_to_fallback_set=False)}


def generated_tanh() -> Lowering:
    """tanh(x) as a fraction if x is small, else as (e - 1) / (e + 1) with e = exp(2 |x|)."""
    from torch._inductor import lowering  # noqa: PLC0415  (slow to import)  # pyright: ignore

    generated = lowering.lowerings[TANH]

    def tanh(x: Any) -> Any:
        dtype = x.get_dtype()
        if dtype not in FRACTIONS:
            return generated(x)
        return lowering.make_pointwise(_pointwise_tanh(dtype))(x)

    return tanh


def _pointwise_tanh(dtype: torch.dtype) -> Callable[[Any], Any]:
    from torch._inductor.virtualized import ops as virtual  # noqa: PLC0415  # pyright: ignore

    ops: Any = virtual

    def number(value: float) -> Any:
        return ops.constant(float(value), dtype)

    def polynomial(coefficients: Sequence[int], at: Any) -> Any:
        *others, found = map(number, coefficients)
        for coefficient in reversed(others):
            found = ops.add(ops.mul(found, at), coefficient)
        return found

    def tanh(x: Any) -> Any:
        size = ops.minimum(ops.abs(x), number(FAR))
        square, power = ops.mul(size, size), ops.exp(ops.add(size, size))
        top, bottom = (polynomial(own, square) for own in FRACTIONS[dtype])
        near = ops.lt(size, number(NEAR))
        over = ops.where(near, ops.mul(size, top), ops.sub(power, number(1)))
        under = ops.where(near, bottom, ops.add(power, number(1)))
        return ops.copysign(ops.truediv(over, under), x)

    return tanh
