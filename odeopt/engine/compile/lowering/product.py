"""Products of matrices: generated loops where they are small, or torch's own."""

from __future__ import annotations

from typing import Any

import torch

from odeopt.engine.compile.lowering.base import Lowering, apply, aten, known, torchs_own

LEAST_COLUMNS = 16
"""Narrower products are left to MKL: their loops would have nothing to vectorise."""

LARGEST_FACTOR, LONGEST_SUM = 2**19, 1024
"""The largest second factor in bytes, which is to stay in the cache, and the longest sum."""

BLOCKS = range(4, 9)
"""Rows of the result that are computed together, each in a register of its own: the fewest that
divide them, since each is to be scheduled and compiled."""


def product_of_batches() -> Lowering:
    """Torch's own for one vector in double precision, whose sums would go through memory."""
    generated, own = known()[aten.bmm.default], torchs_own(aten.bmm.default)

    def product(first: Any, second: Any, **options: Any) -> Any:
        sums_rows = second.get_size()[2] == 1 and first.get_size()[1] > 1
        is_slow = sums_rows and first.get_dtype() == torch.float64
        return (own if is_slow else generated)(first, second, **options)

    return product


def small_products(other: Lowering) -> dict[Any, Lowering]:
    """Products as loops where they are small; `other` is for batches of those that are not.

    The loop over the terms of a sum adds a row of the second factor times one number of the first,
    for each row of a block of the result: inductor fuses the sums of a block into one loop, so that
    the row of the second factor is loaded once.
    """
    mm, addmm = known()[aten.mm.default], known()[aten.addmm.default]
    copies: dict[Any, Any] = {}

    def product(first: Any, second: Any, **options: Any) -> Any:
        block = _block(first, second)
        if options or block is None:
            return other(first, second, **options)
        return _by_blocks(first, second, block, copies)

    def product_of_one(first: Any, second: Any, **options: Any) -> Any:
        block = _block(first, second)
        if options or block is None:
            return mm(first, second, **options)
        one, two = (apply(aten.unsqueeze.default, factor, 0) for factor in (first, second))
        return apply(aten.squeeze.dim, _by_blocks(one, two, block, copies), 0)

    def with_addend(addend: Any, first: Any, second: Any, **options: Any) -> Any:
        if options or _block(first, second) is None:
            return addmm(addend, first, second, **options)
        return apply(aten.add.Tensor, product_of_one(first, second), addend)

    return {
        aten.bmm.default: product, aten.mm.default: product_of_one,
        aten.addmm.default: with_addend,
    }  # fmt: skip


def _block(first: Any, second: Any) -> int | None:
    """How many rows of the product to compute together; None if it is not to be generated."""
    rows, terms = map(int, first.get_size()[-2:])
    columns, dtype = int(second.get_size()[-1]), first.get_dtype()
    if dtype not in (torch.float32, torch.float64) or columns < LEAST_COLUMNS:
        return None
    if terms > LONGEST_SUM or terms * columns * dtype.itemsize > LARGEST_FACTOR:
        return None
    if 1 < rows < BLOCKS[-1]:
        return rows
    return next((block for block in BLOCKS if rows % block == 0), None)


def _by_blocks(first: Any, second: Any, block: int, copies: dict[Any, Any]) -> Any:
    """The product of batches of shapes [b, n, k] and [b, k, m]."""
    first, second = _in_memory(first), _with_contiguous_rows(_in_memory(second), copies)
    batch, rows, _ = first.get_size()
    every_row = apply(aten.unsqueeze.default, second, 1)  # [b, 1, k, m]
    sums: list[Any] = []
    for begin in range(block):
        numbers = apply(aten.slice.Tensor, first, 1, begin, rows, block)  # [b, n / block, k]
        terms = apply(aten.mul.Tensor, apply(aten.unsqueeze.default, numbers, 3), every_row)
        sums.append(apply(aten.sum.dim_IntList, terms, [2]))
    joined = apply(aten.cat.default, sums, 2)  # [b, n / block, block * m]
    return apply(aten.view.default, joined, [batch, rows, second.get_size()[2]])


def _in_memory(matrices: Any) -> Any:
    """The same, computed before the loop that reads it."""
    from torch._inductor import ir  # noqa: PLC0415  (slow to import)  # pyright: ignore

    found: Any = ir.ExternKernel.realize_input(matrices)
    return ir.TensorBox(found)


def _with_contiguous_rows(matrices: Any, copies: dict[Any, Any]) -> Any:
    """The same, in a copy if need be, which is made once."""
    if matrices.get_stride()[-1] == 1:
        return matrices
    key = (matrices.get_name(), str(matrices.get_layout()))
    if key not in copies:
        copies[key] = apply(aten.clone.default, matrices)
        copies[key].realize()
    return copies[key]
