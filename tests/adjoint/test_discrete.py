"""The exact adjoints against autograd through a hand-written loop, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import odeopt
from odeopt import (
    RK4,
    Adaptive,
    Binomial,
    Density,
    DiscreteAdjoint,
    Euler,
    Every,
    ForwardOverReverse,
    Graded,
    GradientFlow,
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    ReverseMode,
    TimeGrid,
)
from odeopt.checkpoint import Advance, CheckpointSchedule, Store

SOLVERS = {
    "euler": Euler(),
    "modified-euler": ModifiedEuler(),
    "midpoint": Midpoint(),
    "rk4": RK4(),
}
SCHEDULES = [
    Every(1), Every(3), Every(100), Density(1), Density(5), Graded(3),
    Binomial(1), Binomial(2), Binomial(50),
]  # fmt: skip
EXACT = 1e-12
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own


# --- a problem with nothing special about it -------------------------------------------------


def inner(params, batch, hparams):
    """Neither quadratic nor separable; every input matters."""
    u = torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(params)])
    features = torch.tanh(batch["x"] @ u)
    fit = (features - batch["y"]).square().mean()
    cubic = (u - hparams["shift"]).pow(3).sum() / 30
    return hparams["scale"]["a"] * fit + hparams["scale"]["b"] * torch.cosh(u).sum() / 5 + cubic


def outer(params, batch, hparams):
    u = torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(params)])
    return (torch.sin(batch @ u)).square().mean() * (1 + hparams["scale"]["b"]) + u.sum() / 7


def problem(shapes, device, seed=0, container="dict"):
    """(params, batch, outer_batch, hparams)."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (0.5 * torch.randn(shape, generator=random)).to(device)

    parts = [draw(*shape) for shape in shapes]
    params = {
        "dict": {f"w{i}": leaf for i, leaf in enumerate(parts)},
        "nested": {"first": (parts[0],), "rest": parts[1:]},
        "tuple": tuple(parts),
    }[container]
    d = sum(leaf.numel() for leaf in parts)
    batch = {"x": draw(4, d), "y": draw(4)}
    hparams = {"scale": {"a": draw().abs() + 0.5, "b": draw().abs()}, "shift": draw(d)}
    return params, batch, draw(3, d), hparams


def requiring_grad(tree):
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def autograd(objective, *inputs):
    """The value and the gradients w.r.t. all inputs, by torch.autograd."""
    inputs = requiring_grad(inputs)
    value = objective(*inputs)
    flat, spec = pytree.tree_flatten(inputs)
    grads = torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True)
    return value.detach(), pytree.tree_unflatten(list(grads), spec)


def unrolled(reference, method, params, batch, outer_batch, hparams, lr):
    """Value and gradients (params, batch, hparams, dt) through the unrolled loop."""

    def objective(params, batch, hparams, dts):
        velocity = reference.descent(inner, batch, hparams)
        return outer(reference.states(method, velocity, params, dts)[-1], outer_batch, hparams)

    return autograd(objective, params, batch, hparams, lr)


def leaves(res):
    """The value and all gradients of a result, flat."""
    grads = res.grads
    found = pytree.tree_leaves((res.value, grads.params, grads.hparams, grads.dt, grads.batch))
    return [leaf for leaf in found if leaf is not None]


def assert_same_as_autograd(reference, res, expected):
    value, (g_params, g_batch, g_hparams, g_dt) = expected
    assert reference.relative(res.value, value) <= EXACT
    assert reference.relative(res.grads.params, g_params) <= EXACT
    assert reference.relative(res.grads.hparams, g_hparams) <= EXACT
    assert reference.relative(res.grads.dt, g_dt) <= EXACT
    if res.grads.batch is not None:
        assert reference.relative(res.grads.batch, g_batch) <= EXACT


shapes = st.lists(
    st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3
)  # fmt: skip


@given(
    shapes=shapes,
    container=st.sampled_from(["dict", "nested", "tuple"]),
    lr=st.sampled_from([0, 1, 2, 7]).flatmap(
        lambda n: st.lists(st.floats(0, 0.3), min_size=n, max_size=n)
    ),
    method=st.sampled_from(sorted(SOLVERS)),
    schedule=st.sampled_from(SCHEDULES),
    batch_requires_grad=st.booleans(),
    seed=st.integers(0, 100),
)
def test_equals_autograd(
    shapes, container, lr, method, schedule, batch_requires_grad, seed, reference, device
):
    params, batch, outer_batch, hparams = problem(shapes, device, seed, container)
    if batch_requires_grad:
        batch = requiring_grad(batch)
    lr = torch.tensor(lr, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    assert (res.grads.batch is not None) == batch_requires_grad
    expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr)
    assert_same_as_autograd(reference, res, expected)


@given(
    lr=st.lists(st.floats(0, 0.3), min_size=1, max_size=5),
    method=st.sampled_from(sorted(SOLVERS)),
    schedule=st.sampled_from(SCHEDULES),
)
def test_solve_backward_equals_autograd(lr, method, schedule, reference, device):
    params, batch, outer_batch, hparams = requiring_grad(problem([(3,), (2, 2)], device))
    lr = torch.tensor(lr, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=schedule)
    sol = opt.solve(params, batch, TimeGrid.from_lr(lr), hparams)
    outer(sol.params, outer_batch, hparams).backward()
    found = pytree.tree_map(lambda leaf: leaf.grad, (params, batch, hparams, lr))
    _, expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("method", SOLVERS)
def test_one_learning_rate_for_all_steps(steps, method, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    lr = torch.tensor(0.1, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method])
    grid = TimeGrid.from_lr(lr, steps)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr.expand(steps))
    assert_same_as_autograd(reference, res, expected)


class Recorder(CheckpointSchedule):
    """Every state, and the times that the forward sweep went through."""

    is_mesh = True
    needs_length = False

    def __init__(self):
        self.times = []

    def forward(self, n):
        del n
        index = 0
        while True:
            progress = yield Store(index)
            self.times.append(progress.t)
            yield Advance(index, index + 1)
            index += 1

    def backward(self, n, kept):
        return Every(1).backward(n, kept)


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Density(3), Graded(3), Binomial(2)])
@pytest.mark.parametrize("horizons", [[1.5], [0.2, 0.9, 0.4]])
def test_adaptive_equals_autograd_through_its_accepted_steps(horizons, schedule, reference, device):
    params, batch, outer_batch, hparams = problem([(3,), ()], device)
    grid = TimeGrid.from_lr(torch.tensor(horizons, device=device))
    solver, recorder = Adaptive(1e-5, 1e-7), Recorder()
    ODEOptimizer(GradientFlow(inner), solver, checkpoints=recorder).solve(
        params, batch, grid, hparams
    )
    times = torch.stack([*recorder.times, grid.times[-1]])
    assert len(times) > len(horizons) + 1
    parents = torch.searchsorted(grid.times, times[:-1] + 1e-9) - 1
    share = times.diff() / grid.dt[parents]

    opt = ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)

    def objective(params, batch, hparams, lengths):
        velocity = reference.descent(inner, batch, hparams)
        dts = share * lengths[parents]
        return outer(reference.states("dopri5", velocity, params, dts)[-1], outer_batch, hparams)

    expected = autograd(objective, params, batch, hparams, grid.dt)
    assert_same_as_autograd(reference, res, expected)


def spiral(t, state, consts, hparams, batch):
    """Not a gradient field, and different at each time."""
    del consts
    u, v = state["u"], state["v"]
    wave = torch.sin(hparams["rate"] * t + 1)
    return {"u": torch.tanh(v) * wave - u, "v": -u.sum() * t + batch * torch.cos(v) * hparams["b"]}


def end(params, batch, hparams):
    return (params["u"].square().sum() * hparams["b"] + (batch * params["v"]).sin().sum()) / 2


def spiral_problem(device):
    params = {"u": torch.tensor([0.3, -0.2, 0.9]), "v": torch.tensor([0.1, 1.0, -0.4])}
    hparams = {"rate": torch.tensor(1.3), "b": torch.tensor([0.7, 0.2, 0.4]).mean()}
    lr = torch.tensor([0.1, 0.05, 0.0, 0.2, 0.15])
    return pytree.tree_map(
        lambda leaf: leaf.to(device), (params, torch.tensor(0.8), torch.tensor(1.1), hparams, lr)
    )


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(2)])
@pytest.mark.parametrize("method", SOLVERS)
def test_a_velocity_that_depends_on_time_equals_autograd(method, schedule, reference, device):
    params, batch, outer_batch, hparams, lr = spiral_problem(device)
    batch.requires_grad_()
    opt = ODEOptimizer(spiral, SOLVERS[method], checkpoints=schedule)
    res = opt.value_and_grad(end)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)

    def objective(params, batch, hparams, dts):
        velocity = lambda t, y: spiral(t, y, (), hparams, batch)  # noqa: E731
        return end(reference.states(method, velocity, params, dts)[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
def test_adaptive_steps_move_with_their_intervals(schedule, reference, device):
    """Each accepted step keeps its share of its interval, and begins later when others grow."""
    params, batch, outer_batch, hparams, _ = spiral_problem(device)
    grid = TimeGrid.from_lr(torch.tensor([0.7, 0.4, 1.3], device=device))
    solver, recorder = Adaptive(1e-4, 1e-6), Recorder()
    ODEOptimizer(spiral, solver, checkpoints=recorder).solve(params, batch, grid, hparams)
    times = torch.stack([*recorder.times, grid.times[-1]])
    parents = torch.searchsorted(grid.times, times[:-1] + 1e-9) - 1
    share = times.diff() / grid.dt[parents]
    assert len(share) > 5
    opt = ODEOptimizer(spiral, solver, checkpoints=schedule)
    res = opt.value_and_grad(end)(params, batch, grid, outer_batch, hparams)

    def objective(params, hparams, lengths):
        velocity = lambda t, y: spiral(t, y, (), hparams, batch)  # noqa: E731
        states = reference.states("dopri5", velocity, params, share * lengths[parents])
        return end(states[-1], outer_batch, hparams)

    _, expected = autograd(objective, params, hparams, grid.dt)
    found = (res.grads.params, res.grads.hparams, res.grads.dt)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize("method", SOLVERS)
def test_gradient_of_the_times_of_a_grid(method, reference, device):
    """Each inner time ends one step and begins the next."""
    params, batch, outer_batch, hparams, lr = spiral_problem(device)
    times = torch.cat([lr.new_tensor([0.4]), 0.4 + lr.cumsum(0)]).requires_grad_()
    opt = ODEOptimizer(spiral, SOLVERS[method])
    sol = opt.solve(params, batch, TimeGrid(times), hparams)
    (found,) = torch.autograd.grad(end(sol.params, outer_batch, hparams), times)

    def objective(times):
        y = params
        for t, dt in zip(times[:-1], times.diff(), strict=True):
            velocity = lambda s, u: spiral(s, u, (), hparams, batch)  # noqa: E731
            y = reference.step(method, velocity, t, dt, y)
        return end(y, outer_batch, hparams)

    _, (expected,) = autograd(objective, times)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize(
    "field",
    [
        odeopt.RegularizedFlow(inner, strength=lambda hp: hp["scale"]["a"]),
        odeopt.RegularizedFlow(inner, strength=0.3, center=lambda hp: {"w0": hp["shift"]}),
        GradientFlow(inner, weight_decay=lambda hp: hp["scale"]["b"]),
    ],
    ids=["proximal", "centre", "decay"],
)
@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
def test_terms_of_the_field_equal_autograd(field, schedule, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    lr = torch.tensor([0.1, 0.2, 0.15, 0.1, 0.1], device=device)
    opt = ODEOptimizer(field, Midpoint(), checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    decays, centred = field._objective.weight_decay != 0.0, getattr(field, "_center", None)

    def objective(params, batch, hparams, dts):
        def whole(u):
            value = inner(u, batch, hparams)
            if decays:
                return value + hparams["scale"]["b"] / 2 * u["w0"].square().sum()
            if centred:
                return value + 0.15 * (u["w0"] - hparams["shift"]).square().sum()
            return value + hparams["scale"]["a"] / 2 * (u["w0"] - params["w0"]).square().sum()

        velocity = reference.descent(whole)
        return outer(reference.states("midpoint", velocity, params, dts)[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", [Every(1), Binomial(3)])
def test_equals_higher(schedule, reference, device):
    higher = pytest.importorskip("higher")
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).to(
        device
    )
    x, y = torch.randn(8, 3, device=device), torch.randn(8, 1, device=device)
    x_val, y_val = torch.randn(6, 3, device=device), torch.randn(6, 1, device=device)

    def mse(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    given = odeopt.from_module(model, mse)
    opt = ODEOptimizer(GradientFlow(given.loss), checkpoints=schedule)
    grid = TimeGrid.from_lr(0.1, 20)
    res = opt.value_and_grad(given.loss)(given.params, (x, y), grid, (x_val, y_val))

    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, sgd, copy_initial_weights=False) as (copy, inner_opt):
        for _ in range(20):
            inner_opt.step(mse(copy, (x, y)))
        value = mse(copy, (x_val, y_val))
        value.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert reference.relative(res.value, value.detach()) <= EXACT
    assert reference.relative(res.grads.params, expected) <= EXACT


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive(1e-4, 1e-6)])
def test_bitwise_the_same_whatever_is_kept(solver, device):
    params, batch, outer_batch, hparams = problem([(3,), (2, 2)], device)
    batch = requiring_grad(batch)
    grid = TimeGrid.from_lr(torch.linspace(0.05, 0.3, 7, device=device))
    results = [
        ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule).value_and_grad(outer)(
            params, batch, grid, outer_batch, hparams
        )
        for schedule in SCHEDULES
    ]
    first = leaves(results[0])
    for schedule, res in zip(SCHEDULES[1:], results[1:], strict=True):
        pairs = zip(leaves(res), first, strict=True)
        assert all(torch.equal(x, y) for x, y in pairs), type(schedule).__name__


@given(a=st.floats(-3, 3), b=st.floats(-3, 3), method=st.sampled_from([*SOLVERS, "adaptive"]))
def test_linear_in_the_gradient_of_the_outer_loss(a, b, method, reference, device):
    params, batch, _, hparams = problem([(5,)], device)
    first, second = torch.randn(2, 5, device=device)
    solver = SOLVERS.get(method) or Adaptive(1e-4, 1e-6)
    opt = ODEOptimizer(GradientFlow(inner), solver, checkpoints=Binomial(2))

    def pulled(w):
        outer_loss = lambda params, w, hparams: w @ params["w0"]  # noqa: E731
        grid = TimeGrid.uniform(1.0, 6)
        grads = opt.value_and_grad(outer_loss)(params, batch, grid, w, hparams).grads
        return grads.params, grads.hparams, grads.dt

    combined = pytree.tree_map(lambda x, y: a * x + b * y, pulled(first), pulled(second))
    assert reference.relative(pulled(a * first + b * second), combined) <= EXACT


@forward_mode
@pytest.mark.parametrize("method", SOLVERS)
def test_transposes_the_forward_tangent(method, reference, device):
    """<A' w, v> = <w, A v> with A v by forward mode through the unrolled loop."""
    params, batch, _, hparams = problem([(5,)], device)
    lr = torch.full((6,), 0.15, device=device)
    w = torch.randn(5, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=Binomial(2))
    outer_loss = lambda params, w, hparams: w @ params["w0"]  # noqa: E731
    res = opt.value_and_grad(outer_loss)(params, batch, TimeGrid.from_lr(lr), w, hparams)

    def loop(params, hparams, lr):
        velocity = reference.descent(inner, batch, hparams)
        return reference.states(method, velocity, params, lr)[-1]["w0"]

    inputs = (params, hparams, lr)
    direction = pytree.tree_map(torch.randn_like, inputs)
    forward = w @ torch.func.jvp(loop, inputs, direction)[1]
    grads = (res.grads.params, res.grads.hparams, res.grads.dt)
    products = pytree.tree_map(lambda g, v: (g * v).sum(), grads, direction)
    backward = sum(pytree.tree_leaves(products))
    assert abs(float(forward - backward)) <= 1e-13 * max(1.0, abs(float(forward)))


def cubic(params, batch):
    return (batch * params.pow(3)).sum() / 6


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(1)])
def test_one_step_on_a_cubic_takes_the_curvature_at_the_start(schedule, reference, device):
    u0 = torch.tensor([1.0, -0.7, 0.4], device=device)
    b, c = torch.tensor([[1.0, 2.0, -3.0], [0.5, 1.0, 2.0]], device=device)
    opt = ODEOptimizer(GradientFlow(cubic), checkpoints=schedule)
    outer_loss = lambda params, c: c @ params  # noqa: E731
    res = opt.value_and_grad(outer_loss)(u0, b, TimeGrid.from_lr(0.3, 1), c)
    assert reference.relative(res.grads.params, c * (1 - 0.3 * b * u0)) <= EXACT


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(1), Binomial(2)])
def test_two_steps_on_a_cubic_take_the_curvatures_at_both_starts(schedule, reference, device):
    u0 = torch.tensor([1.0, -0.7, 0.4], device=device)
    b, c = torch.tensor([[1.0, 2.0, -3.0], [0.5, 1.0, 2.0]], device=device)
    opt = ODEOptimizer(GradientFlow(cubic), checkpoints=schedule)
    outer_loss = lambda params, c: c @ params  # noqa: E731
    res = opt.value_and_grad(outer_loss)(u0, b, TimeGrid.from_lr([0.3, 0.2]), c)
    u1 = u0 - 0.3 * b * u0**2 / 2
    expected = c * (1 - 0.2 * b * u1) * (1 - 0.3 * b * u0)
    slopes = torch.stack([-c * (1 - 0.2 * b * u1) * b * u0**2 / 2, -c * b * u1**2 / 2]).sum(-1)
    assert reference.relative(res.grads.params, expected) <= EXACT
    assert reference.relative(res.grads.dt, slopes) <= EXACT


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive()])
def test_steps_of_zero_length_are_the_identity(solver, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    opt = ODEOptimizer(GradientFlow(inner), solver)
    grid = TimeGrid.from_lr(torch.zeros(3, device=device))
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    grads, value = torch.func.grad_and_value(outer, argnums=(0, 2))(params, outer_batch, hparams)
    assert torch.equal(res.value, value)
    assert torch.equal(res.grads.params["w0"], grads[0]["w0"])
    assert torch.equal(res.grads.hparams["scale"]["b"], grads[1]["scale"]["b"])
    assert not res.grads.hparams["shift"].any()


@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
@pytest.mark.parametrize("solver", SOLVERS.values())
def test_a_step_of_zero_length_changes_nothing(solver, schedule, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    run = ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule).value_and_grad(outer)
    with_zeros = TimeGrid.from_lr(torch.tensor([0.0, 0.1, 0.0, 0.2, 0.0], device=device))
    without = TimeGrid.from_lr(torch.tensor([0.1, 0.2], device=device))
    found = run(params, batch, with_zeros, outer_batch, hparams)
    expected = run(params, batch, without, outer_batch, hparams)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads.params["w0"], expected.grads.params["w0"])
    assert torch.equal(found.grads.hparams["shift"], expected.grads.hparams["shift"])
    assert torch.equal(found.grads.dt[[1, 3]], expected.grads.dt)


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Density(2), Graded(2), Binomial(2)])
@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncated_is_autograd_with_a_detach_before_the_last_steps(
    last, method, schedule, reference, device
):
    params, batch, outer_batch, hparams = problem([(3,), (2,)], device)
    batch = requiring_grad(batch)
    lr = torch.tensor([0.1, 0.2, 0.3, 0.05, 0.15, 0.1, 0.2], device=device)
    opt = ODEOptimizer(
        GradientFlow(inner), SOLVERS[method], odeopt.TruncatedAdjoint(last), checkpoints=schedule
    )
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    first = len(lr) - last

    def objective(params, batch, hparams, dts):
        early = pytree.tree_map(torch.Tensor.detach, (params, batch, hparams))
        velocity = reference.descent(inner, *early[1:])
        reached = reference.states(method, velocity, early[0], dts[:first].detach())[-1]
        y = pytree.tree_map(lambda u, u0: u.detach() + u0 - u0.detach(), reached, params)
        velocity = reference.descent(inner, batch, hparams)
        return outer(reference.states(method, velocity, y, dts[first:])[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.parametrize("steps", [7, 8, 100])
def test_truncating_nothing_is_exact(steps, device):
    params, batch, outer_batch, hparams = problem([(5,)], device)
    found, expected = (
        ODEOptimizer(GradientFlow(inner), adjoint=adjoint).value_and_grad(outer)(
            params, batch, TimeGrid.from_lr(0.1, 7), outer_batch, hparams
        )
        for adjoint in (odeopt.TruncatedAdjoint(steps), DiscreteAdjoint())
    )
    assert all(torch.equal(x, y) for x, y in zip(leaves(found), leaves(expected), strict=True))


def test_truncated_keeps_the_states_of_the_last_steps_only(device):
    params, batch, outer_batch, hparams = problem([(5,)], device)
    opt = ODEOptimizer(GradientFlow(inner), adjoint=odeopt.TruncatedAdjoint(3))
    grid = TimeGrid.from_lr(0.1, 20)
    stats = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams).stats
    assert stats.stored_states == 3
    assert (stats.gradient_evaluations, stats.hvps, stats.replayed_steps) == (20, 3, 0)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive(), odeopt.DormandPrince()])
def test_first_order_takes_the_solve_for_the_identity(solver, reference, device):
    params, batch, outer_batch, hparams = problem([(3,), (2,)], device)
    opt = ODEOptimizer(GradientFlow(inner), solver, odeopt.FirstOrderAdjoint())
    grid = TimeGrid.from_lr(0.1, 6)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    end = opt.solve(params, batch, grid, hparams).params
    grads, value = torch.func.grad_and_value(outer, argnums=(0, 2))(end, outer_batch, hparams)
    assert reference.relative(res.value, value) <= EXACT
    assert reference.relative(res.grads.params, grads[0]) <= EXACT
    assert reference.relative(res.grads.hparams, grads[1]) <= EXACT
    assert not res.grads.dt.any()
    assert res.stats.hvps == res.stats.stored_states == 0


class Moving(odeopt.GradientField):
    """A potential that depends on the time and on the constants."""

    def init(self, params, hparams):
        return params, params

    def potential(self, t, state, consts, hparams, batch):
        u, c = state["w0"], consts["w0"]
        return inner(state, batch, hparams) * torch.cos(t) + (u * c).sin().sum() * (1 + t * t)


GRADIENT_FIELDS = {
    "flow": GradientFlow(inner, weight_decay=lambda hp: hp["scale"]["b"]),
    "regularised": odeopt.RegularizedFlow(
        inner, strength=lambda hp: hp["scale"]["a"], center=lambda hp: {"w0": hp["shift"]}
    ),
    "proximal": odeopt.RegularizedFlow(inner, strength=0.5, weight_decay=0.1),
    "moving": Moving(),
}
BOTH_MODES = {
    "discrete": DiscreteAdjoint,
    "truncated": lambda mode: odeopt.TruncatedAdjoint(2, mode),
    "continuous": lambda mode: odeopt.ContinuousAdjoint(RK4(), mode),
    "continuous-midpoint": lambda mode: odeopt.ContinuousAdjoint(Midpoint(), mode),
    "backsolve": lambda mode: odeopt.BacksolveAdjoint(RK4(), mode),
}


@forward_mode
@pytest.mark.parametrize("adjoint", BOTH_MODES)
@pytest.mark.parametrize("field", GRADIENT_FIELDS)
@pytest.mark.parametrize("solver", [Euler(), RK4()])
def test_forward_over_reverse_equals_reverse_mode(field, solver, adjoint, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    batch = requiring_grad(batch)
    grid = TimeGrid.from_lr(torch.tensor([0.1, 0.02, 0.05, 0.1], device=device))
    found, expected = (
        ODEOptimizer(GRADIENT_FIELDS[field], solver, BOTH_MODES[adjoint](mode)).value_and_grad(
            outer
        )(params, batch, grid, outer_batch, hparams)
        for mode in (ForwardOverReverse(), ReverseMode())
    )
    for name in ("params", "hparams", "dt", "batch"):
        pair = getattr(found.grads, name), getattr(expected.grads, name)
        assert reference.relative(*pair) <= 1e-10, name
