"""Time grids: what they hold, what they refuse, and the gradients that flow through them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt import InputError, TimeGrid

RATES = st.floats(0.0, 10.0, allow_subnormal=False)


def test_from_lr_with_a_number(device):
    grid = TimeGrid.from_lr(0.01, steps=500).to(device)
    assert grid.steps == 500
    assert grid.tasks is None
    assert grid.times.shape == (501,)
    assert grid.times[0].item() == 0.0
    assert grid.times[-1].item() == pytest.approx(5.0)


@given(lr=RATES, steps=st.integers(0, 300))
def test_dt_is_exactly_the_learning_rate(lr, steps):
    assert TimeGrid.from_lr(lr, steps).dt.tolist() == [lr] * steps


def test_dt_is_exactly_a_float32_learning_rate(device):
    lr = torch.tensor(0.1, dtype=torch.float32, device=device)
    dt = TimeGrid.from_lr(lr, steps=100).dt
    assert dt.dtype is torch.float64
    assert torch.equal(dt.to(torch.float32), lr.expand(100))


@given(rates=st.lists(RATES, min_size=1, max_size=20))
def test_per_step_rates_are_kept_exactly_and_times_add_up(rates):
    grid = TimeGrid.from_lr(torch.tensor(rates, dtype=torch.float64))
    assert grid.dt.tolist() == rates
    torch.testing.assert_close(grid.times.diff(), grid.dt)
    assert bool((grid.times.diff() >= 0).all())


def test_per_task_rates(device):
    lr = torch.rand(3, 4, device=device)
    grid = TimeGrid.from_lr(lr)
    assert (grid.tasks, grid.steps) == (3, 4)
    assert torch.equal(grid.dt, lr)
    torch.testing.assert_close(grid.times[:, -1], lr.sum(-1))


def test_a_list_of_rates_is_accepted():
    assert TimeGrid.from_lr([0.1, 0.2]).dt.tolist() == [0.1, 0.2]


@given(t1=st.floats(0.0, 100.0, allow_subnormal=False), steps=st.integers(1, 50))
def test_uniform_ends_at_its_horizon_exactly(t1, steps):
    grid = TimeGrid.uniform(t1, steps)
    assert grid.times[-1].item() == t1
    assert grid.dt.unique().numel() == 1
    torch.testing.assert_close(grid.times.diff(), grid.dt)


def test_uniform_with_one_horizon_per_task(device):
    t1 = torch.tensor([1.0, 2.0, 0.0], device=device)
    grid = TimeGrid.uniform(t1, steps=4)
    assert grid.times.shape == (3, 5)
    assert torch.equal(grid.times[:, -1], t1)
    assert torch.equal(grid.dt, (t1 / 4)[:, None].expand(3, 4))


@pytest.mark.parametrize("grid", [
    TimeGrid.from_lr(0.1, steps=0), TimeGrid.uniform(1.0, steps=0), TimeGrid.uniform(0.0, steps=0),
    TimeGrid(torch.tensor([0.0])),
])  # fmt: skip
def test_no_steps_are_allowed(grid):
    assert grid.steps == 0
    assert grid.dt.shape == (0,)
    assert grid.times.tolist() == [0.0]


def test_no_steps_with_tasks(device):
    grid = TimeGrid.uniform(torch.ones(3, device=device), steps=0)
    assert grid.dt.shape == (3, 0)
    assert grid.tasks == 3


def test_intervals_of_zero_length_are_allowed(device):
    grid = TimeGrid(torch.tensor([0.0, 1.0, 1.0, 2.0], device=device))
    assert grid.dt.tolist() == [1.0, 0.0, 1.0]


def test_times_become_float64(device):
    grid = TimeGrid(torch.tensor([0, 1, 3], device=device))
    assert grid.times.dtype is torch.float64
    assert grid.dt.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("t1", [-1.0, math.nan, math.inf, -math.inf, -1e-300])
def test_a_horizon_that_is_negative_or_not_finite_is_refused(t1):
    with pytest.raises(InputError, match=r"t1 is .*; expected finite horizons of at least 0"):
        TimeGrid.uniform(t1, steps=3)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_bad_horizon_among_tasks_is_refused(device, bad):
    with pytest.raises(InputError, match=rf"t1 of task 1 is {bad:g}; expected finite horizons"):
        TimeGrid.uniform(torch.tensor([1.0, bad], device=device), steps=3)


def test_a_negative_horizon_is_refused_even_without_steps():
    with pytest.raises(InputError, match="t1 is -1"):
        TimeGrid.uniform(-1.0, steps=0)


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_a_learning_rate_that_is_negative_or_not_finite_is_refused(lr):
    with pytest.raises(InputError, match=r"step 0 of the grid has the length .*expected finite"):
        TimeGrid.from_lr(lr, steps=2)


def test_the_first_bad_step_is_named():
    with pytest.raises(InputError, match="step 2 of the grid has the length -1"):
        TimeGrid.from_lr([0.1, 0.2, -1.0, -2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_times_that_are_not_finite_are_refused(bad):
    with pytest.raises(InputError, match="expected finite"):
        TimeGrid(torch.tensor([0.0, bad, 2.0]))


def test_an_infinite_start_is_refused_without_steps():
    with pytest.raises(InputError, match="times holds a value that is not finite"):
        TimeGrid(torch.tensor([math.inf]))


def test_decreasing_times_are_refused():
    with pytest.raises(InputError, match="times must not decrease"):
        TimeGrid(torch.tensor([0.0, 2.0, 1.0]))


def test_decreasing_times_are_refused_even_where_dt_is_given():
    with pytest.raises(InputError, match="times"):
        TimeGrid(torch.tensor([2.0, 1.0, 0.0]), dt=torch.tensor([1.0, 1.0]))


def test_a_dt_that_contradicts_the_times_is_refused():
    with pytest.raises(InputError, match="dt"):
        TimeGrid(torch.tensor([0.0, 1.0, 2.0]), dt=torch.tensor([5.0, 5.0]))


@pytest.mark.parametrize("shape", [(), (0,), (2, 2, 2), (2, 0)])
def test_times_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"times has shape \(.*expected \[N \+ 1\] or \[tasks"):
        TimeGrid(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3,), (1,), (), (2, 2)])
def test_dt_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"dt has shape .* and times \(3,\)"):
        TimeGrid(torch.arange(3.0), dt=torch.ones(shape))


def test_rates_that_do_not_match_steps_are_refused():
    with pytest.raises(InputError, match=r"lr has shape \(2,\) and steps is 3"):
        TimeGrid.from_lr([0.1, 0.1], steps=3)


def test_rates_with_too_many_dimensions_are_refused():
    with pytest.raises(InputError, match="shape"):
        TimeGrid.from_lr(torch.ones(2, 2, 2))


def test_horizons_with_too_many_dimensions_are_refused():
    with pytest.raises(InputError, match=r"t1 has shape \(2, 2\); expected \[\] or \[tasks\]"):
        TimeGrid.uniform(torch.ones(2, 2), steps=2)


@pytest.mark.parametrize("steps", [True, False, 2.0, -1, None, "3", torch.tensor(3)])
def test_a_step_count_that_is_no_natural_number_is_refused(steps):
    with pytest.raises(InputError, match=r"steps is .*; expected an integer of at least 0"):
        TimeGrid.from_lr(0.1, steps=steps)
    with pytest.raises(InputError, match=r"steps is .*; expected an integer of at least 0"):
        TimeGrid.uniform(1.0, steps=steps)


@pytest.mark.parametrize("value", ["fast", None, [[0.1], [0.1, 0.2]], object()])
def test_a_learning_rate_that_is_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"lr is .*; expected a number or a tensor"):
        TimeGrid.from_lr(value, steps=2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex128])
def test_a_learning_rate_that_is_not_real_is_refused(dtype):
    with pytest.raises(InputError, match=f"lr has dtype {dtype}; expected real numbers"):
        TimeGrid.from_lr(torch.ones((), dtype=dtype), steps=2)


@pytest.mark.parametrize("index", [-1, 4, 1.0, True, "1"])
def test_observing_a_state_that_is_not_there_is_refused(index):
    with pytest.raises(InputError, match=r"observe holds .*; expected state indices from 0 to 3"):
        TimeGrid.from_lr(0.1, steps=3, observe=[0, index])


def test_observing_a_state_twice_is_refused():
    with pytest.raises(InputError, match=r"observe is \[1, 2, 1\]; expected each index once"):
        TimeGrid.uniform(1.0, steps=3, observe=[1, 2, 1])


def test_first_and_last_state_can_be_observed():
    assert TimeGrid.uniform(1.0, steps=3, observe=[3, 0]).observe == (3, 0)


def test_gradients_flow_to_a_shared_learning_rate(device):
    lr = torch.tensor(0.1, device=device, requires_grad=True)
    grid = TimeGrid.from_lr(lr, steps=4)
    g_dt, g_times = (torch.autograd.grad(x.sum(), lr)[0] for x in (grid.dt, grid.times))
    assert (g_dt.item(), g_times.item()) == (4.0, 10.0)


def test_gradients_flow_to_per_step_rates(device):
    lr = torch.rand(3, device=device, requires_grad=True)
    grid = TimeGrid.from_lr(lr)
    assert torch.autograd.grad(grid.dt.sum(), lr)[0].tolist() == [1.0, 1.0, 1.0]
    assert torch.autograd.grad(grid.times.sum(), lr)[0].tolist() == [3.0, 2.0, 1.0]


def test_gradients_flow_to_horizons(device):
    t1 = torch.tensor([1.0, 2.0], device=device, requires_grad=True)
    grid = TimeGrid.uniform(t1, steps=4)
    (g_dt,) = torch.autograd.grad(grid.dt.sum(), t1)
    (g_times,) = torch.autograd.grad(grid.times[:, -1].sum(), t1)
    torch.testing.assert_close(g_dt, torch.ones_like(t1))
    torch.testing.assert_close(g_times, torch.ones_like(t1))


def test_gradients_flow_to_a_float32_learning_rate(device):
    lr = torch.tensor(0.1, dtype=torch.float32, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(TimeGrid.from_lr(lr, steps=3).dt.sum(), lr)
    assert gradient.dtype is torch.float32
    assert gradient.item() == 3.0


def test_detach_cuts_the_history_and_keeps_the_rest(device):
    lr = torch.tensor(0.1, device=device, requires_grad=True)
    grid = TimeGrid.from_lr(lr, steps=3, observe=[1])
    cut = grid.detach()
    assert not cut.times.requires_grad
    assert not cut.dt.requires_grad
    assert torch.equal(cut.dt, grid.dt)
    assert cut.observe == (1,)


def test_moving_keeps_dt_exact(device):
    grid = TimeGrid.from_lr(0.1, steps=300, observe=[2]).to(device)
    assert grid.dt.device.type == device.type
    assert grid.dt.tolist() == [0.1] * 300
    assert grid.observe == (2,)


def test_a_grid_can_be_made_inside_a_function_transform(device):
    def end(lr):
        return TimeGrid.from_lr(lr, steps=5).times[-1]

    lr = torch.tensor([0.1, 0.2], device=device)
    found = torch.func.vmap(torch.func.grad(end))(lr)
    torch.testing.assert_close(found, torch.full_like(lr, 5.0))


def test_a_grid_is_immutable():
    grid = TimeGrid.uniform(1.0, steps=2)
    with pytest.raises(AttributeError):
        grid.dt = torch.ones(2)


@pytest.mark.parametrize("make", [
    TimeGrid.from_lr, lambda rates: TimeGrid.from_lr(rates[0], steps=3),
    lambda rates: TimeGrid.from_lr(rates[:1].expand(3)),
    lambda rates: TimeGrid.from_lr(rates[None]), lambda rates: TimeGrid.uniform(rates[0], steps=2),
    lambda rates: TimeGrid.uniform(rates, 2), TimeGrid,
    lambda rates: TimeGrid(rates.cumsum(0), dt=rates[1:]),
], ids=range(8))  # fmt: skip
def test_a_grid_does_not_change_with_the_tensor_that_it_was_made_from(device, make):
    rates = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64, device=device)
    grid, expected = make(rates), make(rates.clone())
    rates.fill_(7.0)
    assert grid == expected


def test_a_grid_does_not_change_with_an_array_that_it_was_made_from():
    rates = np.array([0.1, 0.2])
    grid = TimeGrid.from_lr(rates)
    rates[:] = 7.0
    assert grid.dt.tolist() == [0.1, 0.2]


def test_a_grid_does_not_change_with_the_numbers_of_steps_that_it_was_given(device):
    made = torch.tensor([1, 2], device=device)
    rates = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64, device=device)
    times = torch.cat([rates.new_zeros(2, 1), rates.cumsum(-1)], dim=-1)
    grids = TimeGrid(times, stops=made), TimeGrid.from_lr(torch.ones_like(rates)).stopping(made)
    made.zero_()
    assert [grid.stops.tolist() for grid in grids] == [[1, 2], [1, 2]]


def test_a_number_of_steps_may_be_a_plain_integer():
    grid = TimeGrid.from_lr(0.1, 4)
    assert grid.stopping(3) == grid.stopping(torch.tensor(3))
    for wrong in (2.0, True, torch.tensor(2.0), [1, 2]):
        with pytest.raises(InputError, match=r"steps is .*expected an integer"):
            grid.stopping(wrong)
