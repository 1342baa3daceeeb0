"""Meta-batches of a pool."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt


@given(tasks=st.integers(1, 20), data=st.data(), seed=st.integers(0, 99))
def test_each_epoch_is_a_new_order_of_different_tasks(tasks, data, seed):
    size = data.draw(st.integers(1, tasks))
    values = torch.arange(tasks)[:, None]
    pool = odeopt.TaskPool(values, 10 * values, size, seed)
    per_epoch = tasks // size
    for epoch in range(3):
        drawn = [pool(epoch * per_epoch + k) for k in range(per_epoch)]
        seen = [int(i) for batch in drawn for i in batch.train.flatten()]
        assert len(set(seen)) == len(seen) == per_epoch * size
        for batch in drawn:
            assert torch.equal(batch.validation, 10 * batch.train)
            assert batch.names == tuple(f"task {int(i)}" for i in batch.train)


def test_the_order_depends_on_update_and_seed_alone():
    values = torch.arange(30)
    pools = [odeopt.TaskPool(values, values, 3, seed) for seed in (0, 0, 1)]
    assert pools[0].indices(17) == pools[1].indices(17)
    assert pools[0].indices(17) != pools[2].indices(17)
    assert pools[0].indices(17) != pools[0].indices(27)


def test_a_pool_without_a_task_dimension_is_refused():
    for train in (torch.tensor(1.0), (), {"lr": 0.1}):
        with pytest.raises(odeopt.InputError, match="no tensor with a leading task dimension"):
            odeopt.TaskPool(train, torch.ones(3))
    with pytest.raises(odeopt.InputError, match=r"train\[0\] has shape \(\); expected a leading"):
        odeopt.TaskPool((torch.tensor(1.0), torch.ones(3)), torch.ones(3), batch_size=1)
