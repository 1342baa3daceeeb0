"""Many outer losses from one solve: each gradient is that of the loss alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.params import slow_but
from support.tasks import (
    ALL,
    GRIDS,
    STEPS,
    TASKS,
    assert_close,
    at,
    inner,
    optimizer,
    problem,
)
from torch import nn

import odeopt
from odeopt import RK4, Adam, Binomial, GradientFlow, ODEOptimizer, StabilizedRK, StopWhen, TimeGrid
from odeopt.engine import many as many_losses

LOSSES = 3
RULES = {
    "rule": lambda: ODEOptimizer(Adam(inner, eps=0.1)),
    "rule-binomial": lambda: ODEOptimizer(odeopt.SGD(inner, momentum=0.9), checkpoints=Binomial(2)),
    "stabilized": lambda: ODEOptimizer(GradientFlow(inner), StabilizedRK()),
    "forward-over-reverse": lambda: ODEOptimizer(
        GradientFlow(inner), adjoint=odeopt.DiscreteAdjoint(odeopt.ForwardOverReverse())
    ),
}


def each(params, batch, hparams, **observed):
    """Shape [LOSSES]; the last does not depend on the parameters."""
    values = (batch @ params["w"]).sin().mean(-1) + params["v"].square().sum()
    states = [getattr(state, "params", state) for state in observed.get("observed", [])]
    seen = sum(state["w"].sum() for state in states)
    return torch.cat([values[:-1], hparams["h"]["scale"][None]]) * hparams["h"]["scale"] + seen


def number(q):
    return lambda *args, **observed: each(*args, **observed)[q]


def make(name):
    return RULES[name]() if name in RULES else optimizer(name)


def assert_each_alone(opt, grid, case, tasks=False, chunk_size=None, tolerance=1e-11, **how):
    call = opt.value_and_grad(each, tasks=tasks, many=True, chunk_size=chunk_size, **how)
    res = call(*case[:2], grid, *case[2:])
    for q in range(LOSSES):
        alone = opt.value_and_grad(number(q), tasks=tasks, **how)(*case[:2], grid, *case[2:])
        found = [res.value, res.grads.params, res.grads.hparams, res.grads.dt.nan_to_num()]
        expected = [alone.value, alone.grads.params, alone.grads.hparams, alone.grads.dt]
        expected[-1] = expected[-1].nan_to_num()  # of tasks that have failed
        assert_close(at(found, q), expected, tolerance)
        if tasks:
            assert_close(res.values[q].nan_to_num(), alone.values.nan_to_num(), tolerance)
    return res, alone


@given(
    st.sampled_from([*ALL, *RULES]), st.sampled_from([None, "common", "horizons"]),
    st.sampled_from([None, 1, 2]), st.booleans(),
)  # fmt: skip
def test_each_gradient_is_that_of_the_loss_alone(name, grid, chunk_size, observes):
    case = problem("cpu")
    tasks = grid is not None
    if not tasks:
        case = (case[0], at(case[1], 0), case[2][0], case[3])
    times = GRIDS[grid]("cpu") if tasks else TimeGrid.uniform(0.6, STEPS)
    observes = observes and name != "backsolve"
    times = TimeGrid(times.times, [2, STEPS] if observes else [], dt=times.dt)
    assume(grid != "horizons" or name not in RULES)  # a rate of zero is a step for a rule
    assert_each_alone(make(name), times, case, tasks, chunk_size, 1e-9)


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("name", ["rule", "rule-binomial", "euler", "continuous"])
def test_products_are_counted_for_each_loss_and_replays_once(name, tasks):
    case = problem("cpu")
    if not tasks:
        case = (case[0], at(case[1], 0), case[2][0], case[3])
    grid = TimeGrid.from_lr(0.1, STEPS)
    res, alone = assert_each_alone(make(name), grid, case, tasks)
    assert res.stats.hvps == LOSSES * alone.stats.hvps
    assert res.stats.replayed_steps == alone.stats.replayed_steps
    # a step is looked at for the memory that its graph takes, unless that is known
    looked = {"rule": 0, "continuous": 4}.get(name, 1)
    assert res.stats.gradient_evaluations == alone.stats.gradient_evaluations + looked


def test_an_implicit_gradient():
    def loss(params, batch, hparams):
        return (params["w"] - batch[0][:2]).square().sum() + params["v"].square().sum() * hparams

    losses = lambda params, batch, hparams: params["w"].sum(0) * batch + params["v"] * hparams  # noqa: E731
    params, (x, _), _, _ = problem("cpu")
    opt = ODEOptimizer(GradientFlow(loss), adjoint=odeopt.ImplicitAdjoint())
    case = (params, (x,), TimeGrid.from_lr(0.2, 60), torch.randn(TASKS, 2), torch.tensor(1.5))
    res = opt.value_and_grad(losses, tasks=True, many=True)(*case)
    for q in range(2):
        alone = opt.value_and_grad(lambda *a, q=q: losses(*a)[q], tasks=True)(*case)
        assert_close(at(res.grads.hparams, q), alone.grads.hparams)
        for name, value in alone.diagnostics.items():
            assert_close(res.diagnostics[name][q], value)


def test_an_event():
    params, batch, outer_batch, hparams = problem("cpu")
    loss = lambda *args: inner(*args) - 0.8 * inner(params, at(batch, 0), hparams)  # noqa: E731
    for tasks in (False, True):
        own = (batch, outer_batch) if tasks else (at(batch, 0), outer_batch[0])
        case = (params, own[0], own[1], hparams)
        stop = StopWhen(loss)
        assert_each_alone(make("euler"), TimeGrid.from_lr(0.1, 12), case, tasks, stop=stop)


def test_where_all_steps_come_after_the_event():
    params, batch, outer_batch, hparams = problem("cpu")
    case = (params, batch, outer_batch, hparams)
    never = StopWhen(lambda *args: inner(*args) + 9)
    assert_each_alone(make("euler"), TimeGrid.from_lr(0.1, 3), case, True, stop=never)


@pytest.mark.parametrize("name", slow_but(["euler", "rule", "stabilized"], "euler"))
def test_compiled(name):
    params, batch, outer_batch, hparams = problem("cpu")
    choices = {"euler": GradientFlow, "rule": lambda loss: Adam(loss, eps=0.1),
               "stabilized": GradientFlow}  # fmt: skip
    solver = StabilizedRK() if name == "stabilized" else None
    opt = ODEOptimizer(choices[name](inner), solver, compile="trace")
    case, grid = (params, batch, outer_batch, hparams), TimeGrid.from_lr(0.1, STEPS)
    assert_each_alone(opt, grid, case, tasks=True)
    assert_each_alone(opt, grid, case, tasks=True, chunk_size=2)  # the last chunk is a shorter one


def test_random_numbers_are_the_same_for_each_chunk():
    params, batch, outer_batch, hparams = problem("cpu")

    def noisy(params, batch, hparams):
        return inner(params, batch, hparams) + (params["w"] * torch.randn(2, 2)).sin().sum()

    stream = odeopt.Stream(lambda k: at(batch, k % TASKS), seed=3)
    case = (params, stream, outer_batch[0], hparams)
    for checkpoints in (None, Binomial(2), odeopt.Every(1)):
        opt = ODEOptimizer(odeopt.SGD(noisy), checkpoints=checkpoints)
        assert_each_alone(opt, TimeGrid.from_lr(0.1, STEPS), case, chunk_size=2)


def test_no_steps():
    params, batch, outer_batch, hparams = problem("cpu")
    case = (params, batch, outer_batch, hparams)
    assert_each_alone(make("euler"), TimeGrid.from_lr(0.1, 0), case, tasks=True)


def test_gradients_of_batches_that_require_grad():
    params, (x, y), outer_batch, hparams = problem("cpu")
    batch = (x.requires_grad_(), y)
    call = make("euler").value_and_grad(each, tasks=True, many=True)
    grid = TimeGrid.from_lr(0.1, STEPS)
    res = call(params, batch, grid, outer_batch, hparams)
    alone = make("euler").value_and_grad(number(1), tasks=True)
    expected = alone(params, batch, grid, outer_batch, hparams).grads.batch
    assert_close(at(res.grads.batch[0], 1), expected[0])
    assert res.grads.batch[0].shape == (LOSSES, *x.shape)


def test_a_failed_task_is_left_out_of_each_loss():
    params, (x, y), outer_batch, hparams = problem("cpu")
    x[1] = torch.nan
    case = (params, (x, y), outer_batch, hparams)
    grid = TimeGrid.from_lr(0.1, STEPS)
    res, _ = assert_each_alone(make("rule"), grid, case, tasks=True, on_failure="skip")
    assert res.status.shape == (TASKS,)
    assert bool(res.status[1] != 0)
    with pytest.raises(odeopt.DivergenceError, match="task 1: the state is not finite"):
        make("rule").value_and_grad(each, tasks=True, many=True)(*case[:2], grid, *case[2:])


def test_a_loss_that_is_not_finite_is_one_of_its_task():
    def broken(params, batch, hparams):
        values = each(params, batch, hparams)
        return values + torch.tensor([0.0, 1.0, 0.0]) * (batch[0, 0] - 1e9).clamp(max=0).log()

    params, batch, outer_batch, hparams = problem("cpu")
    call = make("euler").value_and_grad(broken, tasks=True, many=True)
    with pytest.raises(odeopt.DivergenceError, match="the outer loss is not finite"):
        call(params, batch, TimeGrid.from_lr(0.1, 2), outer_batch, hparams)


@pytest.mark.parametrize("adjoint", ["discrete", "backsolve"])
def test_too_long_steps_are_refused(adjoint):
    params, batch, outer_batch, hparams = problem("cpu")
    chosen = odeopt.ContinuousAdjoint(RK4()) if adjoint == "discrete" else odeopt.BacksolveAdjoint()
    opt = ODEOptimizer(GradientFlow(lambda *a: 40 * inner(*a)), RK4(), chosen)
    call = opt.value_and_grad(each, tasks=True, many=True)
    with pytest.raises((odeopt.StabilityError, odeopt.DivergenceError)):
        call(params, batch, TimeGrid.uniform(8.0, 24), outer_batch, hparams)


def test_chunks_are_such_that_their_graphs_fit(monkeypatch):
    sizes, whole = [], many_losses.in_chunks

    def noting(pull, cotangents, size):
        sizes.append(size)
        return whole(pull, cotangents, size)

    monkeypatch.setattr("odeopt.engine.kernels.in_chunks", noting)
    params, batch, outer_batch, hparams = problem("cpu")
    case = (params, batch, outer_batch, hparams)
    odeopt.set_memory_budget(4000)
    try:
        for name in ("euler", "rule"):
            assert_each_alone(make(name), TimeGrid.from_lr(0.1, 2), case, tasks=True)
    finally:
        odeopt.set_memory_budget(None)
    assert max(sizes) < LOSSES
    sizes.clear()
    assert_each_alone(make("euler"), TimeGrid.from_lr(0.1, 2), case, tasks=True)
    assert min(sizes) >= LOSSES


def test_estimated_errors_and_tolerances():
    params, batch, outer_batch, hparams = problem("cpu")
    case, grid = (params, at(batch, 0), outer_batch[0], hparams), TimeGrid.uniform(0.6, 12)
    opt = ODEOptimizer(GradientFlow(inner), RK4())
    res, _ = assert_each_alone(opt, grid, case, estimate_error=True)
    assert res.error.trusted
    tuned = odeopt.from_tolerance(GradientFlow(inner), tol=1e-4)
    res = tuned.value_and_grad(each, many=True)(*case[:2], grid, *case[2:])
    exact = ODEOptimizer(GradientFlow(inner), RK4()).value_and_grad(each, many=True)
    expected = exact(*case[:2], TimeGrid.uniform(0.6, 100), *case[2:])
    assert_close(res.grads.params, expected.grads.params, 3e-4)


def test_an_interrupted_backward_sweep_goes_on(tmp_path):
    params, batch, outer_batch, hparams = problem("cpu")
    fails = [True]

    def loss(params, batch, hparams):
        if fails[0] and torch.is_grad_enabled() and loss.calls > 17:
            raise KeyboardInterrupt
        loss.calls += 1
        return inner(params, batch, hparams)

    loss.calls = 0
    tier = odeopt.Disk(tmp_path, resume=True, seconds=0)
    opt = ODEOptimizer(GradientFlow(loss), checkpoints=odeopt.Every(1, store=tier))
    call, grid = opt.value_and_grad(each, many=True), TimeGrid.from_lr(0.1, 12)
    with pytest.raises(KeyboardInterrupt):
        call(params, at(batch, 0), grid, outer_batch[0], hparams)
    fails[0] = False
    res = call(params, at(batch, 0), grid, outer_batch[0], hparams)
    expected = make("euler").value_and_grad(each, many=True)(
        params, at(batch, 0), grid, outer_batch[0], hparams
    )
    assert_close(res.grads.params, expected.grads.params, 0)
    assert res.stats.gradient_evaluations > 12


@pytest.mark.parametrize(("loss", "shown"), [
    (lambda *a: each(*a).sum(), r"shape \(\)"), (lambda *a: each(*a)[None], r"shape \(1, 3\)"),
    (lambda *a: each(*a)[:0], r"shape \(0,\)"), (lambda *a: each(*a).int(), "int32"),
])  # fmt: skip
def test_an_outer_loss_of_another_shape_is_refused(loss, shown):
    params, batch, outer_batch, hparams = problem("cpu")
    call = make("euler").value_and_grad(loss, many=True)
    with pytest.raises(odeopt.InputError, match=rf"{shown}.*expected .*\[losses\]"):
        call(params, at(batch, 0), TimeGrid.from_lr(0.1, 2), outer_batch[0], hparams)


@pytest.mark.parametrize(("how", "message"), [
    ({"chunk_size": 2}, "with many=True alone"), ({"many": True, "chunk_size": 0}, "chunk_size"),
    ({"many": True, "chunk_size": 1.5}, "chunk_size"),
])  # fmt: skip
def test_chunk_sizes_that_are_none(how, message):
    with pytest.raises(odeopt.InputError, match=message):
        make("euler").value_and_grad(each, **how)


def test_workers_refuse_it():
    call = make("euler").value_and_grad(each, tasks=True, many=True)
    with odeopt.Workers() as workers, pytest.raises(odeopt.CompatibilityError, match="many=True"):
        odeopt.spread(call, workers)


@pytest.mark.parametrize("how", [
    {}, {"checkpoints": Binomial(2)}, {"checkpoints": odeopt.Every(1)},
    pytest.param({"compile": "trace"}, marks=pytest.mark.slow),
], ids=["graphs", "replays", "states", "compiled"])  # fmt: skip
@pytest.mark.parametrize("norm", [False, True])
def test_a_recorded_loop(how, norm):
    middle = [nn.BatchNorm1d(4)] if norm else [nn.Dropout(0.2)] if "compile" not in how else []
    model = nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 1))
    weights, x, y = torch.rand(12, requires_grad=True), torch.randn(12, 3), torch.randn(12)
    errors = lambda model, batch, weights: (model(batch[0])[:, 0] - batch[1]).square()  # noqa: E731
    train = lambda model, batch, weights: (weights * errors(model, batch, weights)).mean()  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with odeopt.RecordedLoop(model, optimizer, weights, seed=1, **how) as loop:
        for _ in range(5):
            loop.step(train, (x, y))
    held_out = torch.randn(LOSSES, 3), torch.randn(LOSSES)
    for chunk_size in (None, 2):
        res = loop.value_and_grad(errors, held_out, many=True, chunk_size=chunk_size)
        for q in range(LOSSES):
            alone = loop.value_and_grad(lambda *a, q=q: errors(*a)[q], held_out)
            found = (res.value, res.grads.params, res.grads.hparams, res.grads.lr)
            expected = (alone.value, alone.grads.params, alone.grads.hparams, alone.grads.lr)
            assert_close(at(found, q), expected, 1e-9)


def test_a_bilevel_problem():
    def loss(params, batch, hparams):
        fit = (batch[0] @ params - batch[1]).square().mean()
        return fit + hparams["ridge"].exp() * params.square().sum()

    def errors(params, batch, hparams):
        return (batch[0] @ params - batch[1]).square()

    def bilevel(outer_loss):
        return odeopt.BilevelProblem(
            odeopt.SGD(loss, momentum=0.9), outer_loss,
            grid=lambda hparams: TimeGrid.from_lr(hparams["lr"].exp(), steps=9),
        )  # fmt: skip

    hparams = {"ridge": torch.tensor(-2.0), "lr": torch.tensor(-3.0), "init": torch.randn(5)}
    train, held_out = [(torch.randn(n, 5), torch.randn(n)) for n in (20, LOSSES)]
    begin = lambda hparams: 2 * hparams["init"]  # noqa: E731
    res = bilevel(errors).value_and_grad(hparams, begin, train, held_out, many=True, chunk_size=2)
    for q in range(LOSSES):
        alone = bilevel(lambda *a, q=q: errors(*a)[q])
        expected = alone.value_and_grad(hparams, begin, train, held_out).grads.hparams
        assert_close(at(res.grads.hparams, q), expected, 1e-11)
