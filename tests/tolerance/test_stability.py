"""Unstable steps of gradient descent are told by the states that they went through."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt import DivergenceError, GradientFlow, ODEOptimizer, StabilityError, TimeGrid
from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.checkpoint.uniform import Every
from odeopt.engine.choices import Choices
from odeopt.engine.run import run_forward
from odeopt.engine.safety import Safety
from odeopt.engine.stats import Stats
from odeopt.gradient.value_and_grad import Beginning
from odeopt.solver.runge_kutta import Euler
from odeopt.testing.problems import Quadratic
from odeopt.tolerance.stability import MOST, NOISE, UnstableStepsError, refuse_unstable, stiffness


def forward(loss, params, batch, grid, tasks=False):
    field = GradientFlow(loss)
    with torch.no_grad():
        problem = Beginning(field, params, None, None).problem(batch, grid, tasks)
        choices = Choices(field, Euler(), DiscreteAdjoint(), Every(1), Safety(), None)
        return run_forward(choices, problem, Stats())


def bowl(params, batch):
    return 0.5 * (batch * params**2).sum()


@given(
    rates=st.lists(st.floats(-0.5, 3.0), min_size=1, max_size=5),
    lengths=st.lists(st.floats(0.1, 1.0), min_size=2, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_it_is_a_lower_bound_whatever_the_steps(rates, lengths, seed):
    known = Quadratic.from_spectrum(rates, seed)
    dt = torch.tensor(lengths)
    grid = TimeGrid(torch.cat([torch.zeros(1), dt.cumsum(-1)]), dt=dt)
    start = torch.randn(len(rates), generator=torch.Generator().manual_seed(seed + 1))
    run = forward(known.loss, start, known.center, grid)
    bound = max(map(abs, rates)) * max(lengths[:-1])  # of the last step only the length is known
    assert stiffness(run) <= bound * (1 + 1e-6) + 2 / NOISE


@pytest.mark.parametrize("rate", [0.3, 1.9, 2.1, 3.0])
def test_along_one_direction_it_is_the_stiffness_of_a_step(device, rate):
    grid = TimeGrid.uniform(5.0, 5)
    run = forward(bowl, torch.ones(1, device=device), torch.tensor(rate, device=device), grid)
    assert stiffness(run) == pytest.approx(rate)
    if rate < 2:
        refuse_unstable(run)
        return
    with pytest.raises(UnstableStepsError, match=f"h \\* rho of {rate:g}") as caught:
        refuse_unstable(run)
    assert caught.value.further == pytest.approx(1.25 * rate / 2)
    assert isinstance(caught.value, StabilityError)


def test_tasks_are_judged_together_and_those_that_diverged_are_left_out():
    grid = TimeGrid.uniform(3.0, 3)
    rates = torch.tensor([[0.5], [1.5]])
    assert stiffness(forward(bowl, torch.ones(1), rates, grid, tasks=True)) == pytest.approx(1.5)
    lost = torch.tensor([[0.5], [torch.inf]])
    assert stiffness(forward(bowl, torch.ones(1), lost, grid, tasks=True)) == pytest.approx(0.5)


def quartic(params, batch):
    return (batch * params**4).sum()


def test_a_blow_up_counts_only_if_there_is_nothing_else():
    grid = TimeGrid.uniform(10.0, 10)
    both = torch.tensor([[1e-3], [50.0]])
    assert stiffness(forward(quartic, torch.ones(1), both, grid, tasks=True)) < 0.1
    assert stiffness(forward(quartic, torch.ones(1), both[1], grid)) > 2


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_and_a_start_at_rest_tell_nothing_wrong(steps):
    grid = TimeGrid.uniform(3.0, steps)
    assert stiffness(forward(bowl, torch.zeros(2), torch.tensor(9.0), grid)) == 0
    told = stiffness(forward(bowl, torch.ones(2), torch.tensor(9.0), grid))
    assert told == (0 if steps == 1 else pytest.approx(9.0 * 3.0 / 2))


def test_rounding_is_not_taken_for_unstable_steps():
    grid = TimeGrid.uniform(60.0, 60)
    run = forward(bowl, torch.ones(2), torch.tensor([1.0, 0.5]), grid)
    assert stiffness(run) <= 1.0 + 2 / NOISE
    resting = forward(lambda u, b: bowl(u - 1, b), torch.full((2,), 1 + 1e-15), grid.dt[0], grid)
    assert stiffness(resting) == 0


def test_after_a_blow_up_not_just_any_number_of_steps_is_tried():
    assert UnstableStepsError(1e9).further == MOST


def test_what_failed_is_counted():
    opt = ODEOptimizer(GradientFlow(quartic), Euler())
    path, spent = opt.value_and_grad(lambda u, batch: u.sum()), Stats()
    args = (torch.ones(2), torch.tensor(50.0), TimeGrid.uniform(10.0, 10), None)
    with pytest.raises(DivergenceError):
        path.counted(spent, *args)
    assert spent.gradient_evaluations >= 10  # and those with which the error says where it was
    assert spent.hvps == 0


def test_an_inspection_ends_a_call_before_it_goes_back():
    opt = ODEOptimizer(GradientFlow(bowl), Euler())
    path = replace(opt.value_and_grad(lambda u, batch: u.sum()), inspect=refuse_unstable)
    spent, args = Stats(), (torch.ones(2), torch.tensor(3.0), TimeGrid.uniform(5.0, 5), None)
    with pytest.raises(UnstableStepsError):
        path.counted(spent, *args)
    assert (spent.gradient_evaluations, spent.hvps) == (5, 0)
