"""Solves whose batch changes from step to step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error


@pytest.fixture
def problem(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator).to(device)
    y = torch.randn(12, generator=generator).to(device)
    return torch.randn(3, generator=generator).to(device), (x, y)


def loss(params, batch, hparams=None):
    value = torch.log1p((batch[0] @ params - batch[1]).square()).mean()
    return value if hparams is None else value + hparams * params.square().sum()


GRID = odeopt.TimeGrid.from_lr(0.3, 7)


def unrolled(params, stream, penalty):
    for k in range(7):
        gradient = torch.autograd.grad(loss(params, stream(k), penalty), params, create_graph=True)
        params = params - 0.3 * gradient[0]
    return params


@given(
    seed=st.integers(0, 100), size=st.integers(1, 12),
    checkpoints=st.sampled_from([odeopt.Every(1), odeopt.Binomial(2), odeopt.Density(3)]),
    compile=st.sampled_from([None, "trace"]),
)  # fmt: skip
def test_the_gradient_is_that_of_the_loop(problem, seed, size, checkpoints, compile):
    params, data = problem
    stream = odeopt.Stream.minibatches(data, size, seed)
    start, penalty = params.clone().requires_grad_(), data[0].new_tensor(0.05).requires_grad_()
    value = loss(unrolled(start, stream, penalty), data, penalty)
    expected = torch.autograd.grad(value, [start, penalty])
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), checkpoints=checkpoints, compile=compile)
    res = opt.value_and_grad(loss)(params, stream, GRID, data, penalty.detach())
    assert relative_error([res.grads.params, res.grads.hparams], list(expected)) < 1e-12
    assert abs(res.value - value.detach()) < 1e-14
    assert res.grads.batch is None


@pytest.mark.parametrize("solver", [odeopt.ModifiedEuler(), odeopt.RK4()])
def test_a_batch_is_constant_within_a_step_of_several_stages(problem, solver):
    params, data = problem
    stream = odeopt.Stream.minibatches(data, 4, seed=1)
    found = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), solver).solve(params, stream, GRID)
    y = params
    for k in range(7):
        one = odeopt.TimeGrid.from_lr(0.3, 1)
        y = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), solver).solve(y, stream(k), one).params
    assert relative_error(found.params, y) < 1e-14


def test_tasks_draw_from_one_stream(problem):
    params, (x, y) = problem
    data = (x.reshape(3, 4, 3), y.reshape(3, 4))
    order = [[0, 2], [1, 3], [3, 0], [2, 2], [1, 0], [0, 1], [3, 3]]
    stream = odeopt.Stream(lambda k: tuple(leaf[:, order[k]] for leaf in data))
    opt = odeopt.ODEOptimizer(odeopt.Adam(loss))
    found = opt.value_and_grad(loss, tasks=True)(params, stream, GRID, data)
    alone = []
    for task in range(3):
        own = odeopt.Stream(lambda k, i=task: tuple(leaf[i, order[k]] for leaf in data))
        outer = tuple(leaf[task] for leaf in data)
        alone.append(opt.value_and_grad(loss)(params, own, GRID, outer).grads.params)
    assert relative_error(found.grads.params, torch.stack(alone).mean(0)) < 1e-12


def test_minibatches_are_traced_once(problem):
    params, data = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    stream = odeopt.Stream.minibatches(data, 5, seed=3)
    res = opt.value_and_grad(loss)(params, stream, GRID, data)
    assert res.stats.compile_misses == 2  # the step and the pull


def test_a_stream_that_changes_its_mind_is_found(problem):
    params, data = problem
    calls = []

    def batch(k):
        calls.append(k)
        return tuple(leaf[(k + len(calls)) % 5 :][:4] for leaf in data)

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), checkpoints=odeopt.Binomial(2))
    with pytest.raises(odeopt.NondeterminismError, match="is not the same when it is replayed"):
        opt.value_and_grad(loss)(params, odeopt.Stream(batch), GRID, data)


def test_batches_of_another_structure_are_refused(problem):
    params, data = problem
    stream = odeopt.Stream(lambda k: data if k < 3 else list(data))
    with pytest.raises(odeopt.InputError, match="batch 3 has the structure"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).solve(params, stream, GRID)


def test_a_tensor_in_the_place_of_a_number_is_refused(problem):
    params, data = problem
    stream = odeopt.Stream(lambda k: (data[0], 2.0 if k < 3 else torch.tensor(2.0)))
    field = odeopt.GradientFlow(lambda params, batch: loss(params, data) * batch[1])
    with pytest.raises(odeopt.InputError, match="batch 3 has the structure"):
        odeopt.ODEOptimizer(field).solve(params, stream, GRID)


def test_too_few_batches_are_refused(problem):
    params, data = problem
    stacked = odeopt.Stream.stacked(tuple(leaf.expand(4, *leaf.shape) for leaf in data))
    with pytest.raises(odeopt.InputError, match="holds 4 batches for 7 steps"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).solve(params, stacked, GRID)


def test_a_batch_that_requires_grad_is_refused(problem):
    params, data = problem
    stream = odeopt.Stream(lambda k: (data[0].clone().requires_grad_(), data[1]))
    with pytest.raises(odeopt.CapturedTensorError, match="Put what is to be differentiated into"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).solve(params, stream, GRID)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"solver": odeopt.Adaptive(1e-3, 1e-6)}, "Adaptive chooses its own steps"),
        (
            {
                "solver": odeopt.DormandPrince(1e-3, 1e-6),
                "adjoint": odeopt.ContinuousAdjoint(odeopt.RK4()),
            },
            "DormandPrince chooses its own steps",
        ),
        ({"adjoint": odeopt.ContinuousAdjoint(odeopt.RK4())}, "looks between the steps"),
        ({"adjoint": odeopt.BacksolveAdjoint()}, "BacksolveAdjoint looks between the steps"),
        ({"adjoint": odeopt.ImplicitAdjoint()}, "ImplicitAdjoint looks between the steps"),
    ],
)
def test_choices_that_look_between_the_steps_are_refused(problem, choices, message):
    params, data = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), **choices)
    stream = odeopt.Stream.minibatches(data, 4, seed=0)
    with pytest.raises(odeopt.CompatibilityError, match=message):
        opt.value_and_grad(loss)(params, stream, GRID, data)


def test_random_numbers_in_several_stages_are_refused(problem):
    params, data = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.RK4())
    with pytest.raises(odeopt.CompatibilityError, match="RK4 evaluates the loss 4 times"):
        opt.solve(params, odeopt.Stream.constant(data, seed=0), GRID)


class Plain(odeopt.solver.StepSolver):
    """Gradient descent, as a plugin may write it; the end of a step is found by making it again."""

    order, stages, stability_limit = 1, 1, 2.0

    def step(self, velocity, t, dt, y):
        return y + dt * velocity(t, y)

    def pull(self, *at):
        return super().pull(*at)._replace(end=None)


def test_random_numbers_work_with_any_solver_of_one_stage(problem):
    def noisy(params, batch):
        return loss(params, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))

    params, data = problem
    stream = odeopt.Stream.constant(data, seed=0)
    found, expected = (
        odeopt.ODEOptimizer(odeopt.GradientFlow(noisy), solver, checkpoints=odeopt.Binomial(2))
        .value_and_grad(loss)(params, stream, GRID, data)
        .grads.params
        for solver in (Plain(), odeopt.Euler())
    )
    assert relative_error(found, expected) < 1e-14
