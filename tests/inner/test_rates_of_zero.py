"""A rate of zero is a step like any other; a task that waits makes none."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree

RULES = {
    "momentum": lambda loss: odeopt.SGD(loss, momentum=0.9),
    "nesterov": lambda loss: odeopt.SGD(loss, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda loss: odeopt.RMSprop(loss, momentum=0.5, centered=True, eps=1e-3),
    "adam": lambda loss: odeopt.Adam(loss, amsgrad=True),
    "adamw": odeopt.AdamW,
    "adagrad": lambda loss: odeopt.Adagrad(loss, 0.1, eps=1e-3),
    "adadelta": lambda loss: odeopt.Adadelta(loss, eps=1e-3),
    "adamax": odeopt.Adamax,
    "nadam": lambda loss: odeopt.NAdam(loss, eps=1e-4),
    "radam": lambda loss: odeopt.RAdam(loss, betas=(0.5, 0.9), eps=1e-4),
    "asgd": lambda loss: odeopt.ASGD(loss, 0.3, t0=2),
    "rprop": lambda loss: odeopt.Rprop(loss, step_sizes=(1e-3, 0.1)),
}
PEERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, 1.0, momentum=0.9),
    "nesterov": lambda ps: torch.optim.SGD(ps, 1.0, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, 1.0, momentum=0.5, centered=True, eps=1e-3),
    "adam": lambda ps: torch.optim.Adam(ps, 1.0, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, 1.0),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, 1.0, 0.1, eps=1e-3),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, 1.0, eps=1e-3),
    "adamax": lambda ps: torch.optim.Adamax(ps, 1.0),
    "nadam": lambda ps: torch.optim.NAdam(ps, 1.0, eps=1e-4),
    "radam": lambda ps: torch.optim.RAdam(ps, 1.0, betas=(0.5, 0.9), eps=1e-4),
    "asgd": lambda ps: torch.optim.ASGD(ps, WARM_UP[0], 0.3, t0=2),
    "rprop": lambda ps: torch.optim.Rprop(ps, WARM_UP[0], step_sizes=(1e-3, 0.1)),
}
WARM_UP = [0.0, 0.0, 0.01, 0.0, 0.05, 0.03]


def by_torch(name, regression, lrs):
    """The final parameters of torch's own optimiser."""
    params = tree.map_tensors(lambda x: x.clone().requires_grad_(), regression.params)
    optimizer = PEERS[name](tree.tensors(params))
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        regression.plain_loss(params, regression.data).backward()
        optimizer.step()
    return params


@pytest.mark.parametrize("compiler", [None, pytest.param("trace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RULES)
def test_a_warm_up_from_zero_is_that_of_torch(name, compiler, regression, device):
    grid = odeopt.TimeGrid.from_lr(torch.tensor(WARM_UP, device=device))
    opt = odeopt.ODEOptimizer(RULES[name](regression.plain_loss), compile=compiler)
    sol = opt.solve(regression.params, regression.data, grid)
    assert relative_error(sol.params, by_torch(name, regression, WARM_UP)) < 1e-14


@pytest.mark.parametrize("checkpoints", [odeopt.Every(1), odeopt.Binomial(2)])
@pytest.mark.parametrize("name", RULES)
def test_its_gradient_is_that_of_the_loop(name, checkpoints, regression, device):
    rule = RULES[name](regression.weighted_loss)
    lrs = torch.tensor(WARM_UP, device=device)
    inputs = [
        tree.map_tensors(lambda x: x.clone().requires_grad_(), value)
        for value in (regression.params, regression.hparams, lrs)
    ]
    final = unroll(rule, inputs[0], regression.data, inputs[2], inputs[1])
    value = regression.outer_loss(final, regression.outer, inputs[1])
    leaves = tree.tensors(inputs)
    expected = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    res = odeopt.ODEOptimizer(rule, checkpoints=checkpoints).value_and_grad(regression.outer_loss)(
        regression.params, regression.data, odeopt.TimeGrid.from_lr(lrs), regression.outer,
        regression.hparams,
    )  # fmt: skip
    found = tree.tensors([res.grads.params, res.grads.hparams, res.grads.dt])
    assert relative_error(found, list(expected)) < 1e-12


def test_a_bilevel_problem_learns_through_a_rate_of_zero(regression, device):
    """The derivative w.r.t. the first rate of a warm-up counts, too."""
    problem = odeopt.BilevelProblem(
        RULES["adam"](lambda params, batch, hparams: regression.plain_loss(params, batch)),
        lambda params, batch, hparams: regression.plain_loss(params, batch),
        lambda hparams: odeopt.TimeGrid.from_lr(hparams["lrs"]),
    )
    hparams = {"lrs": torch.tensor(WARM_UP, device=device)}
    given = regression.params, regression.data, (*regression.outer, None)
    res = problem.value_and_grad(hparams, *given)
    moved = {"lrs": hparams["lrs"] + torch.eye(6, device=device)[0] * 1e-6}
    change = problem.value(moved, *given) - problem.value(hparams, *given)
    assert relative_error(res.grads.hparams["lrs"][0] * 1e-6, change) < 1e-4


def tasks_of(regression, count=3):
    return tuple(
        torch.stack([leaf + 0.1 * i if leaf.is_floating_point() else leaf for i in range(count)])
        for leaf in regression.data
    )


@pytest.mark.parametrize(
    ("name", "compiler"), [*((name, None) for name in RULES), ("adam", "trace")]
)
def test_a_task_that_waits_keeps_its_momenta(name, compiler, regression, device):
    """Each task ends as it does in a solve of its own with as many steps."""
    opt = odeopt.ODEOptimizer(RULES[name](regression.plain_loss), compile=compiler)
    lrs, stops = torch.tensor(WARM_UP, device=device), [6, 4, 0]
    data = tasks_of(regression)
    grid = odeopt.TimeGrid.from_lr(lrs).stopping(torch.tensor(stops, device=device))
    outer = tuple(leaf.expand(3, *leaf.shape) for leaf in regression.outer)
    call = opt.value_and_grad(regression.outer_loss, tasks=True)
    together = call(regression.params, data, grid, outer)
    sol = opt.solve(regression.params, data, grid, tasks=True)
    grads = []
    for task, count in enumerate(stops):
        batch = tuple(leaf[task] for leaf in data)
        own = odeopt.TimeGrid.from_lr(lrs[:count])
        end = opt.solve(regression.params, batch, own)
        mine = tree.map_tensors(lambda leaf, i=task: leaf[i], sol.state)
        assert relative_error(mine, end.state) < 1e-13
        alone = opt.value_and_grad(regression.outer_loss)(
            regression.params, batch, own, regression.outer
        )
        assert relative_error(together.grads.dt[task, :count], alone.grads.dt) < 1e-11
        assert not together.grads.dt[task, count:].any()
        grads.append(alone.grads.params)
    mean = tree.pytree.tree_map(lambda *gs: torch.stack(gs).mean(0), *grads)
    assert relative_error(together.grads.params, mean) < 1e-12


def test_an_event_stops_a_rule_before_a_rate_of_zero(regression, device):
    """After the event nothing moves, whatever the grid says."""
    rule = RULES["momentum"](regression.plain_loss)
    lrs = torch.tensor([0.02, 0.0, 0.05, 0.05, 0.05, 0.05], device=device)
    start = regression.plain_loss(regression.params, regression.data)
    stop = odeopt.StopWhen.loss_below(regression.plain_loss, 0.9 * float(start))
    res = odeopt.ODEOptimizer(rule).value_and_grad(regression.outer_loss, stop=stop)(
        regression.params, regression.data, odeopt.TimeGrid.from_lr(lrs), regression.outer
    )
    steps = int(res.diagnostics["stop_step"])
    assert 2 < steps < 6
    last = res.diagnostics["stop_time"] - lrs[: steps - 1].sum()
    end = unroll(
        rule, regression.params, regression.data,
        torch.cat([lrs[: steps - 1], last[None]]),
    )  # fmt: skip
    assert relative_error(res.value, regression.outer_loss(end, regression.outer)) < 1e-12


def test_a_horizon_of_each_task_leaves_out_the_steps_of_a_rule(regression, device):
    data, outer = tasks_of(regression), tasks_of(regression)
    lrs = torch.tensor([0.0, 0.05, 0.9, 0.9, 0.9, 0.9], device=device)
    loop = odeopt.InnerLoop(
        odeopt.ODEOptimizer(RULES["momentum"](regression.plain_loss)),
        regression.plain_loss,
        odeopt.TimeGrid.from_lr(lrs),
        horizon=odeopt.TaskHorizon(every=1, patience=1),
    )
    batch = odeopt.TaskBatch(data, outer)
    grid, _ = loop.stopped_grid(regression.params, batch, None)
    found = loop(regression.params, batch)
    assert grid.stops.max() < 6
    for task, count in enumerate(grid.stops.tolist()):
        own = tuple(leaf[task] for leaf in data)
        end = unroll(RULES["momentum"](regression.plain_loss), regression.params, own, lrs[:count])
        assert relative_error(found.values[task], regression.plain_loss(end, own)) < 1e-12
