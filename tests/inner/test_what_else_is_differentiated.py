"""Batches, schedules and losses: gradients w.r.t. what else goes into a training loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree


def leaf(value):
    return tree.map_tensors(lambda x: x.detach().clone().requires_grad_(), value)


@given(micro=st.sampled_from([1, 2, 10]), checkpoints=st.sampled_from([None, odeopt.Binomial(2)]))
def test_synthetic_examples_and_labels(regression, micro, checkpoints):
    rule = odeopt.Adam(regression.plain_loss, micro_batches=micro)
    data, lrs = leaf(regression.data[:2]), torch.full((6,), 0.03).to(regression.data[0])
    value = regression.outer_loss(unroll(rule, regression.params, data, lrs), regression.outer)
    expected = torch.autograd.grad(value, data)
    opt = odeopt.ODEOptimizer(rule, checkpoints=checkpoints)
    grid = odeopt.TimeGrid.from_lr(lrs)
    res = opt.value_and_grad(regression.outer_loss)(regression.params, data, grid, regression.outer)
    assert relative_error(res.grads.batch, expected) < 1e-10
    sol = opt.solve(regression.params, data, grid)
    regression.outer_loss(sol.params, regression.outer).backward()
    assert relative_error([x.grad for x in data], list(expected)) < 1e-10


def test_a_whole_schedule_made_of_two_numbers(regression):
    rule = odeopt.SGD(regression.plain_loss, momentum=0.9)
    numbers = leaf(torch.tensor([0.05, -0.4]).to(regression.data[0]))

    def schedule(numbers):
        return numbers[0] * torch.exp(numbers[1] * torch.arange(8).to(numbers))

    batch = regression.data[:2]
    sol = odeopt.ODEOptimizer(rule).solve(
        regression.params, batch, odeopt.TimeGrid.from_lr(schedule(numbers))
    )
    regression.outer_loss(sol.params, regression.outer).backward()
    end = unroll(rule, regression.params, batch, schedule(numbers))
    expected = torch.autograd.grad(regression.outer_loss(end, regression.outer), numbers)
    assert relative_error(numbers.grad, expected[0]) < 1e-10


def test_parameters_of_a_loss_and_of_an_augmentation(regression):
    hparams = leaf({"turn": torch.tensor(0.2), "sharp": torch.tensor(1.5)})
    hparams = tree.map_tensors(lambda x: x.to(regression.data[0]), hparams)
    hparams = leaf(hparams)

    def loss(params, batch, hparams):
        x, y, _ = batch
        turned = torch.cat([x[:, :1] + hparams["turn"] * x[:, 1:2], x[:, 1:]], dim=1)
        error = torch.tanh(turned @ params["w"]) @ params["out"]["v"] + params["out"]["b"] - y
        return (torch.log1p(hparams["sharp"] * error.square()) / hparams["sharp"]).mean()

    rule, stream = odeopt.RMSprop(loss, eps=1e-3), regression.stream(seed=2)
    lrs = torch.full((7,), 0.01).to(regression.data[0])
    end = unroll(rule, regression.params, stream, lrs, hparams)
    value = regression.plain_loss(end, regression.outer)
    expected = torch.autograd.grad(value, list(hparams.values()))
    res = odeopt.ODEOptimizer(rule, checkpoints=odeopt.Binomial(3)).value_and_grad(
        lambda params, batch, hparams: regression.plain_loss(params, batch)
    )(regression.params, stream, odeopt.TimeGrid.from_lr(lrs), regression.outer, hparams)
    assert relative_error(list(res.grads.hparams.values()), list(expected)) < 1e-10


def test_frozen_tasks_keep_their_state(regression):
    rule = odeopt.Adam(regression.plain_loss)
    batch = tuple(leaf.reshape(4, 5, *leaf.shape[1:]) for leaf in regression.data[:2])
    lrs = torch.full((4, 6), 0.03).to(batch[0])
    for task, stop in enumerate((6, 0, 3, 5)):
        lrs[task, stop:] = 0.0
    opt = odeopt.ODEOptimizer(rule)
    sol = opt.solve(regression.params, batch, odeopt.TimeGrid.from_lr(lrs), tasks=True)
    for task, stop in enumerate((6, 0, 3, 5)):
        own = tuple(leaf[task] for leaf in batch)
        grid = odeopt.TimeGrid.from_lr(lrs[task, :stop], stop)
        alone = opt.solve(regression.params, own, grid).params
        mine = tree.map_tensors(lambda x, i=task: x[i], sol.params)
        assert relative_error(mine, alone) < 1e-12


def test_a_second_derivative_is_refused_by_name(regression):
    rule, params = odeopt.Adam(regression.plain_loss), leaf(regression.params)
    grid = odeopt.TimeGrid.from_lr(0.02, 3)
    sol = odeopt.ODEOptimizer(rule).solve(params, regression.data[:2], grid)
    value = regression.outer_loss(sol.params, regression.outer)
    first = torch.autograd.grad(value, tree.tensors(params), create_graph=True)
    with pytest.raises(odeopt.SecondOrderError, match="second derivative"):
        first[0].sum().backward()


def test_compiled_rules_agree_with_eager_ones(regression):
    grid, stream = odeopt.TimeGrid.from_lr(0.02, 6), regression.stream(size=4)
    found = []
    for mode in (None, "trace"):
        opt = odeopt.ODEOptimizer(odeopt.AdamW(regression.weighted_loss), compile=mode)
        res = opt.value_and_grad(regression.outer_loss)(
            regression.params, stream, grid, regression.outer, regression.hparams
        )
        found.append((res.grads.params, res.grads.hparams, res.grads.dt))
    assert relative_error(found[1], found[0]) < 1e-12
    assert res.stats.compile_misses == 2
