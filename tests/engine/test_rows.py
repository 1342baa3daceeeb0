"""Rows of small tensors: what was put in comes out, in few parts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt.engine.forward import PACK, Rows


@given(count=st.integers(0, 10 * PACK), tasks=st.sampled_from([None, 3]), before=st.integers(0, 40))
def test_rows_come_out_as_they_went_in(count, tasks, before):
    shape = () if tasks is None else (tasks,)
    expected = torch.randn(before + count, *shape)
    rows = Rows.unstacked(expected[:before])
    for row in expected[before:]:
        rows.append(row)
    assert bool(rows) == (before + count > 0)
    assert torch.equal(rows.stacked(torch.zeros(shape)), expected)


def test_no_rows_have_the_shape_and_dtype_of_one():
    found = Rows().stacked(torch.zeros(3, dtype=torch.float32))
    assert found.shape == (0, 3)
    assert found.dtype == torch.float32


def test_thousands_of_rows_are_a_few_tensors():
    rows = Rows()
    for k in range(5000):
        rows.append(torch.tensor(float(k)))
    held = len(rows._packed) + len(rows._loose)
    assert held <= PACK + 12
    assert torch.equal(rows.stacked(torch.zeros(1)), torch.arange(5000.0))
