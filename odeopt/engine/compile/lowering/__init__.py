"""Operations that kernels on a CPU make otherwise than inductor would, since that is faster."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from odeopt.engine.compile.lowering.base import Lowering, aten, torchs_own
from odeopt.engine.compile.lowering.processor import has_wide_registers, on_amd
from odeopt.engine.compile.lowering.product import product_of_batches, small_products
from odeopt.engine.compile.lowering.tanh import generated_tanh


def own_lowerings() -> dict[Any, Lowering]:
    """By operation.

    On Intel's processors tanh is torch's own, which calls MKL: a quarter of the time of a generated
    one. On AMD's, where that takes twice the time, it is generated from a fraction and one
    exponential, and products of small matrices are generated too if registers are wide enough:
    those of MKL take two to three times as long there.
    """
    product = product_of_batches()
    if not on_amd():
        return {aten.bmm.default: product, aten.tanh.default: torchs_own(aten.tanh.default)}
    found = {aten.bmm.default: product, aten.tanh.default: generated_tanh()}
    return found | small_products(product) if has_wide_registers() else found


@cache
def _sources() -> str:
    """A digest of the files of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def kind_of_lowerings() -> str:
    """Tells kernels on disk apart, which are found by their graphs and settings otherwise."""
    return f"{'AMD' if on_amd() else 'other'}, {has_wide_registers()}, {_sources()}"
