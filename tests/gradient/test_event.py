"""Solves that stop at an event, and the gradient of what they stop at."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.params import slow_but

import odeopt
from odeopt.gradient.event import find_crossing
from odeopt.testing import relative_error
from odeopt.tools import tree

GRID = odeopt.TimeGrid.from_lr(0.2, 30)
INNER = {
    "euler": lambda loss: (odeopt.GradientFlow(loss), odeopt.Euler()),
    "rk4": lambda loss: (odeopt.GradientFlow(loss), odeopt.RK4()),
    "heavy-ball": lambda loss: (odeopt.HeavyBall(loss, damping=2.0), odeopt.Midpoint()),
    "sgd": lambda loss: (odeopt.SGD(loss, momentum=0.5), None),
    "adam": lambda loss: (odeopt.Adam(loss), None),
}


@pytest.fixture
def problem(device):
    generator = torch.Generator().manual_seed(2)
    batch = torch.randn(3, 2, generator=generator).to(device)
    return batch[0].clone() + 1.5, batch, batch[0].new_tensor(0.3)


def loss(params, batch, level=None):
    offset = params - batch.mean(0)
    return (offset**2).sum() + 0.1 * (offset**4).sum() + 0.05 * offset[0] * offset[1]


def outer(params, batch, level=None):
    return torch.sin(params).sum() + (params * batch[1]).sum()


def stop(level=0.3):
    return odeopt.StopWhen.loss_below(loss, level)


def value_at(name, params, batch, level, grid=GRID):
    opt = odeopt.ODEOptimizer(*INNER[name](loss))
    chosen = stop(lambda hparams: hparams)
    return opt.value_and_grad(outer, stop=chosen)(params, batch, grid, batch, level)


@pytest.mark.parametrize("name", sorted(INNER))
def test_it_stops_where_the_event_is_zero(problem, name):
    params, batch, level = problem
    opt = odeopt.ODEOptimizer(*INNER[name](loss))
    res = value_at(name, params, batch, level)
    steps = int(res.diagnostics["stop_step"])
    dt = torch.full((steps,), 0.2).to(params)
    dt[-1] = res.diagnostics["stop_time"] - 0.2 * (steps - 1)
    assert 0 < dt[-1] <= 0.2
    end = opt.solve(params, batch, odeopt.TimeGrid.from_lr(dt), level).params
    assert abs(loss(end, batch) - level) < 1e-12
    assert abs(outer(end, batch) - res.value) < 1e-12


@pytest.mark.parametrize("name", ["adam", "rk4"])
def test_an_event_inside_the_first_step_cuts_it(problem, name):
    params, batch, _ = problem
    level = 0.95 * loss(params, batch)
    res = value_at(name, params, batch, level)
    assert res.diagnostics["stop_step"] == 1
    length = res.diagnostics["stop_time"]
    assert 0 < length < 0.2
    opt = odeopt.ODEOptimizer(*INNER[name](loss))
    end = opt.solve(params, batch, odeopt.TimeGrid.from_lr(length[None]), level).params
    assert abs(loss(end, batch) - level) < 1e-12
    move = 1e-5 * torch.tensor([0.3, -0.8]).to(params)
    ends = [value_at(name, params + sign * move, batch, level).value for sign in (1, -1)]
    assert abs((ends[0] - ends[1]) / 2 - res.grads.params @ move) < 1e-13


def test_tasks_stop_before_in_after_and_never(problem):
    """Before the first step, inside it, inside a later one, and not at all."""
    params, batch, _ = problem
    first = loss(params, batch)
    levels = torch.stack([2 * first, 0.95 * first, 0.02 * first, -first])
    event = odeopt.StopWhen(lambda params, data: loss(params, data[0]) - data[1])
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda params, data: loss(params, data[0])))

    def run(data, **keywords):
        call = opt.value_and_grad(lambda p, data: outer(p, data[0]), stop=event, **keywords)
        return call(params, data, GRID, data)

    together = run((batch.expand(4, 3, 2), levels), tasks=True)
    alone = [run((batch, level)) for level in levels]
    steps = [int(res.diagnostics["stop_step"]) for res in alone]
    assert steps[:2] == [1, 1]
    assert 1 < steps[2] < steps[3] == 30
    for name in ("stop_step", "stop_time"):
        found = torch.stack([res.diagnostics[name] for res in alone])
        torch.testing.assert_close(together.diagnostics[name], found)
    mean = torch.stack([res.grads.params for res in alone]).mean(0)
    assert relative_error(together.grads.params, mean) < 1e-12


def test_an_event_at_the_very_end_of_a_step_is_there(device):
    ends = torch.tensor([2.0, 3.0], device=device)
    asked = []

    def value(x):
        asked.append(x)
        return 1 - x / 2

    starts = torch.ones(2, device=device)
    g_high = torch.zeros(2, device=device)
    active = torch.ones(2, dtype=torch.bool, device=device)
    assert torch.equal(find_crossing(value, ends, starts, g_high, active), ends)
    assert asked == []


def test_an_event_that_is_touched_has_no_derivative(device):
    """It changes its sign where it depends on what does not move."""
    start = torch.tensor([0.0, 1.0], device=device)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda u, batch: -u[0] * batch))
    event = odeopt.StopWhen(lambda u, batch: torch.where(u[0] < 1, u[1], -u[1]))
    call = opt.value_and_grad(lambda u, batch: u.sum(), stop=event)
    with pytest.raises(odeopt.StabilityError, match="touched rather than crossed"):
        call(start, start.new_ones(()), GRID, start)


def test_one_task_whose_event_is_touched_is_enough(device):
    start = torch.tensor([0.0, 1.0], device=device)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda u, batch: -u[0]))
    kinds = torch.tensor([0.0, 1.0], device=device)  # the first is crossed, the second touched
    event = odeopt.StopWhen(
        lambda u, kind: torch.where(kind > 0, torch.where(u[0] < 1, u[1], -u[1]), 1.5 - u[0])
    )
    call = opt.value_and_grad(lambda u, batch: u.sum(), tasks=True, stop=event)
    with pytest.raises(odeopt.StabilityError, match="touched rather than crossed"):
        call(start, kinds, GRID, kinds)


@pytest.mark.parametrize("name", slow_but(sorted(INNER), "sgd", "heavy-ball"))
def test_the_gradient_is_that_of_finite_differences(problem, name):
    params, batch, level = problem
    res = value_at(name, params, batch, level)
    eps = 1e-5
    for direction in (torch.tensor([1.0, 0.0]), torch.tensor([0.3, -0.8])):
        move = eps * direction.to(params)
        ends = [value_at(name, params + sign * move, batch, level).value for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * eps)
        assert abs(slope - res.grads.params @ direction.to(params)) < 1e-8
    ends = [value_at(name, params, batch, level + sign * eps).value for sign in (1, -1)]
    assert abs((ends[0] - ends[1]) / (2 * eps) - res.grads.hparams) < 1e-7


def test_without_the_correction_it_would_be_wrong(problem):
    params, batch, level = problem
    res = value_at("rk4", params, batch, level)
    steps = int(res.diagnostics["stop_step"])
    dt = torch.full((steps,), 0.2).to(params)
    dt[-1] = res.diagnostics["stop_time"] - 0.2 * (steps - 1)
    opt = odeopt.ODEOptimizer(*INNER["rk4"](loss))
    fixed = opt.value_and_grad(outer)(params, batch, odeopt.TimeGrid.from_lr(dt), batch, level)
    assert relative_error(fixed.grads.params, res.grads.params) > 0.1


def test_the_flows_gradient_in_closed_form(device):
    start = torch.tensor([2.0, 1.0], device=device)
    rates = torch.tensor([1.0, 3.0], device=device)
    inner = odeopt.GradientFlow(lambda u, batch: 0.5 * (rates * u * u).sum())
    opt = odeopt.ODEOptimizer(inner, odeopt.RK4())
    event = odeopt.StopWhen(lambda u, batch: u[0] - 1.0)  # at T = log 2, whatever u[1] is
    res = opt.value_and_grad(lambda u, batch: u[1], stop=event)(
        start, rates, odeopt.TimeGrid.uniform(2.0, 400), rates
    )
    assert abs(res.diagnostics["stop_time"] - torch.tensor(2.0).log()) < 1e-9
    # u1(T) = u1 (u0 / 1) ** -3
    expected = torch.tensor([-3 * 1.0 * 2.0**-4, 2.0**-3], device=device)
    assert relative_error(res.grads.params, expected) < 1e-8


@pytest.mark.slow
@settings(max_examples=6)
@given(
    name=st.sampled_from(sorted(INNER)),
    levels=st.lists(st.floats(0.05, 30.0), min_size=3, max_size=3),
    checkpoints=st.sampled_from([odeopt.Every(1), odeopt.Binomial(2)]),
)  # fmt: skip
def test_each_task_stops_at_its_own_time(problem, name, levels, checkpoints):
    params, batch, _ = problem
    data = (torch.stack([batch, batch + 0.1, batch - 0.2]), params.new_tensor(levels))

    def own_loss(params, batch):
        return loss(params, batch[0])

    def own_outer(params, batch):
        return outer(params, batch[0])

    event = odeopt.StopWhen(lambda params, batch: loss(params, batch[0]) - batch[1])
    opt = odeopt.ODEOptimizer(*INNER[name](own_loss), checkpoints=checkpoints)
    together = opt.value_and_grad(own_outer, tasks=True, stop=event)(params, data, GRID, data)
    alone = [
        opt.value_and_grad(own_outer, stop=event)(params, own, GRID, own)
        for own in (tree.map_tensors(lambda x, i=task: x[i], data) for task in range(3))
    ]
    times = torch.stack([res.diagnostics["stop_time"] for res in alone])
    assert torch.allclose(together.diagnostics["stop_time"], times, rtol=1e-9, atol=1e-9)
    mean = torch.stack([res.grads.params for res in alone]).mean(0)
    assert relative_error(together.grads.params, mean) < 1e-9


def test_an_event_that_never_comes_changes_nothing(problem):
    params, batch, _ = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    never = opt.value_and_grad(outer, stop=stop(-1.0))(params, batch, GRID, batch)
    plain = opt.value_and_grad(outer)(params, batch, GRID, batch)
    assert torch.equal(never.grads.params, plain.grads.params)
    assert torch.equal(never.grads.dt, plain.grads.dt)
    assert never.diagnostics["stop_step"] == 30


def test_an_event_that_was_there_from_the_start_makes_no_step(problem):
    params, batch, _ = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    res = opt.value_and_grad(outer, stop=stop(1e6))(params, batch, GRID, batch)
    assert res.diagnostics["stop_time"] == 0
    direct = torch.func.grad(outer)(params, batch)
    assert torch.equal(res.grads.params, direct)


def test_an_event_that_is_zero_at_the_start_makes_no_step(device):
    """Whatever it does afterwards: it has come down to zero."""
    flow = odeopt.GradientFlow(lambda params, batch: -params.sum())
    event = odeopt.StopWhen(lambda params, batch: params.sum())
    params = torch.tensor([1.0, -1.0], device=device)
    call = odeopt.ODEOptimizer(flow).value_and_grad(lambda p, b: p.square().sum(), stop=event)
    res = call(params, (), GRID, ())
    assert res.diagnostics["stop_time"] == 0
    assert torch.equal(res.grads.params, 2 * params)


def test_a_stream_needs_a_batch_for_the_event(problem):
    params, batch, _ = problem
    stream = odeopt.Stream.minibatches(batch, 2, seed=0)
    opt = odeopt.ODEOptimizer(odeopt.SGD(loss))
    with pytest.raises(odeopt.InputError, match="has no batch for the event"):
        opt.value_and_grad(outer, stop=stop())(params, stream, GRID, batch)
    chosen = odeopt.StopWhen.loss_below(loss, 0.8, batch=batch)

    def value(params):
        return opt.value_and_grad(outer, stop=chosen)(params, stream, GRID, batch)

    res, eps = value(params), 1e-6
    assert res.diagnostics["stop_step"] < 30
    direction = torch.tensor([0.6, -0.4]).to(params)
    ends = [value(params + sign * eps * direction).value for sign in (1, -1)]
    assert abs((ends[0] - ends[1]) / (2 * eps) - res.grads.params @ direction) < 1e-7


@pytest.mark.parametrize("name", slow_but(["sgd", "rk4", "heavy-ball"], "rk4"))
def test_step_sizes_count_up_to_the_step_that_is_cut(problem, name):
    params, batch, level = problem
    opt = odeopt.ODEOptimizer(*INNER[name](loss))
    stream = odeopt.Stream(lambda k: batch * (1 + 0.1 * k))
    dt, eps = torch.full((12,), 0.1).to(params), 1e-6

    def value(dt):
        chosen = odeopt.StopWhen.loss_below(loss, lambda hparams: hparams + 0.5, batch)
        call = opt.value_and_grad(outer, stop=chosen)
        return call(params, stream, odeopt.TimeGrid.from_lr(dt), batch, level)

    res = value(dt)
    last = int(res.diagnostics["stop_step"]) - 1
    assert 1 <= last < 10
    assert res.grads.dt[:last].abs().min() > 1e-6
    for k in range(12):
        move = eps * torch.eye(12).to(params)[k]
        ends = [value(dt + sign * move).value for sign in (1, -1)]
        assert abs((ends[0] - ends[1]) / (2 * eps) - res.grads.dt[k]) < 1e-8
    assert torch.equal(res.grads.dt[last:], torch.zeros(12 - last).to(params))


@pytest.mark.parametrize("own", [False, True], ids=["of the solve", "of the event"])
def test_an_event_that_looks_at_what_requires_grad_is_refused(problem, own):
    params, batch, _ = problem
    learned = batch.clone().requires_grad_()
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    chosen = odeopt.StopWhen.loss_below(loss, 0.8, batch=learned if own else None)
    with pytest.raises(odeopt.CapturedTensorError, match="the event looks at a batch"):
        opt.value_and_grad(outer, stop=chosen)(params, batch if own else learned, GRID, batch)
    apart = odeopt.StopWhen.loss_below(loss, 0.8, batch=batch)
    res = opt.value_and_grad(outer, stop=apart)(params, learned, GRID, batch)
    assert res.grads.batch.abs().max() > 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"solver": odeopt.Adaptive(1e-3, 1e-6)}, "Adaptive chooses its own steps"),
        ({"adjoint": odeopt.ContinuousAdjoint(odeopt.RK4())}, "use DiscreteAdjoint"),
        ({"adjoint": odeopt.FirstOrderAdjoint()}, "use DiscreteAdjoint"),
        ({"adjoint": odeopt.TruncatedAdjoint(29)}, "leaves steps out"),
    ],
)
def test_choices_that_cannot_cut_a_step_are_refused(problem, choices, message):
    params, batch, _ = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), **choices)
    with pytest.raises(odeopt.CompatibilityError, match=message):
        opt.value_and_grad(outer, stop=stop())(params, batch, GRID, batch)


def test_observed_states_are_refused(problem):
    params, batch, _ = problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    grid = odeopt.TimeGrid.from_lr(0.2, 5, observe=[2])
    with pytest.raises(odeopt.CompatibilityError, match="observes states"):
        opt.value_and_grad(lambda p, b, observed: p.sum(), stop=stop())(params, batch, grid, batch)


def test_an_event_that_is_no_function_is_refused():
    with pytest.raises(odeopt.InputError, match=r"event is 0\.3"):
        odeopt.StopWhen(0.3)


MOST_CALLS = {1: 2, 3: 40, 9: 100}
"""A secant finds the root of a line at once; where g is flat it takes nearly all there are."""


@given(root=st.floats(1e-3, 0.999), power=st.sampled_from([1, 3, 9]), high=st.floats(0.1, 100.0))
def test_a_crossing_is_found_to_rounding(root, power, high):
    target = torch.tensor([root * high, 0.5 * high])

    calls = 0

    def value(x):
        nonlocal calls
        calls += 1
        return (target / high) ** power - (x / high) ** power

    ends = torch.full((2,), high)
    active = torch.tensor([True, False])
    found = find_crossing(value, ends, value(torch.zeros(2)), value(ends), active)
    assert abs(found[0] - target[0]) <= 1e-13 * high
    assert found[1] == high
    assert calls <= 2 + MOST_CALLS[power]
