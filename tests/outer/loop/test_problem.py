"""Bilevel problems: the gradient w.r.t. hparams, by every way in which they act."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree

STEPS = 7
RULES = {
    "sgd": lambda loss: odeopt.SGD(loss, momentum=0.9, weight_decay=lambda hp: hp["decay"].exp()),
    "adam": lambda loss: odeopt.Adam(loss, eps=1e-4, lr_scale=lambda hp: 1 + hp["decay"].exp()),
}


def predict(params, x):
    return torch.tanh(x @ params["w"]) @ params["v"]


def loss(params, batch, hparams):
    x, y, index = batch
    error = (predict(params, x) - y).square() * hparams["weights"][index].exp()
    return error.mean() + hparams["strengths"][0] * (params["w"] - hparams["centre"]).square().sum()


def outer(params, batch, hparams):
    error = (predict(params, batch[0]) - batch[1]).square().mean()
    return error + 0.1 * hparams["weights"].square().sum()


def draw(generator, *shape):
    return 0.3 * torch.randn(shape, generator=generator)


@pytest.fixture
def case(device):
    generator = torch.Generator().manual_seed(5)
    data = draw(generator, 12, 3), draw(generator, 12), torch.arange(12)
    hparams = {
        "weights": draw(generator, 12), "strengths": [draw(generator).abs()],
        "centre": draw(generator, 3, 4), "decay": draw(generator) - 4,
        "init": {"w": draw(generator, 3, 4), "v": draw(generator, 4)},
        "lr": draw(generator, STEPS) - 3, "name": "no tensor",
    }  # fmt: skip
    outer_data = draw(generator, 8, 3), draw(generator, 8)
    everything = tree.map_tensors(lambda leaf: leaf.to(device), (data, hparams, outer_data))
    return everything


def rates(hparams):
    return odeopt.TimeGrid.from_lr(hparams["lr"].exp())


def init(hparams):
    return {"w": hparams["init"]["w"].sin(), "v": hparams["init"]["v"]}


@given(
    name=st.sampled_from(sorted(RULES)), streamed=st.booleans(), learn_init=st.booleans(),
    learn_lr=st.sampled_from(["schedule", "scalar", "fixed"]),
    checkpoints=st.sampled_from([odeopt.Every(1), odeopt.Every(3), odeopt.Binomial(2)]),
)  # fmt: skip
def test_the_whole_gradient(case, name, streamed, learn_init, learn_lr, checkpoints):
    data, hparams, outer_data = case
    own = tree.map_tensors(lambda leaf: leaf.clone().requires_grad_(), hparams)
    schedule = {
        "schedule": rates,
        "scalar": lambda hp: odeopt.TimeGrid.from_lr(hp["lr"][0].exp(), STEPS),
        "fixed": lambda hp: odeopt.TimeGrid.from_lr(0.1, STEPS),
    }[learn_lr]
    start = init if learn_init else init(hparams)
    batch = odeopt.Stream.minibatches(data, 5, seed=2) if streamed else data
    begin = start(own) if learn_init else start
    lrs = schedule(own).dt.to(data[0])
    final = unroll(RULES[name](loss), begin, batch, lrs, own)
    value = outer(final, outer_data, own)
    leaves = tree.tensors(own)
    expected = torch.autograd.grad(value, leaves, allow_unused=True)
    expected = [
        torch.zeros_like(x) if g is None else g for x, g in zip(leaves, expected, strict=True)
    ]

    opt = odeopt.ODEOptimizer(RULES[name](loss), checkpoints=checkpoints)
    fixed = schedule(hparams) if learn_lr == "fixed" else schedule
    problem = odeopt.BilevelProblem(opt, outer, grid=fixed)
    res = problem.value_and_grad(hparams, start, batch, outer_data)
    assert abs(res.value - value.detach()) < 1e-12
    assert relative_error(tree.tensors(res.grads.hparams), expected) < 1e-10
    assert res.grads.hparams["name"] is None
    assert problem.value(hparams, start, batch, outer_data) == pytest.approx(res.value.item())

    sol = problem.solve(own, start, batch)
    found = torch.autograd.grad(outer(sol.params, outer_data, own), leaves, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    assert relative_error(found, expected) < 1e-10


def test_flows_with_a_learned_horizon(case):
    data, hparams, outer_data = case
    hparams["horizon"] = torch.tensor(0.7, device=data[0].device)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.RK4())
    problem = odeopt.BilevelProblem(
        opt, outer, lambda hp: odeopt.TimeGrid.uniform(hp["horizon"], 5)
    )
    res = problem.value_and_grad(hparams, init, data, outer_data)
    own = tree.map_tensors(lambda leaf: leaf.clone().requires_grad_(), hparams)
    value = outer(problem.solve(own, init, data).params, outer_data, own)
    expected = torch.autograd.grad(value, own["horizon"])[0]
    assert relative_error(res.grads.hparams["horizon"], expected) < 1e-12


def test_gradients_that_would_be_lost_are_refused(case):
    data, hparams, outer_data = case
    lr = torch.tensor(0.1, device=data[0].device, requires_grad=True)
    rule = odeopt.SGD(loss)
    with pytest.raises(odeopt.CapturedTensorError, match="grid was made from a tensor"):
        odeopt.BilevelProblem(rule, outer, odeopt.TimeGrid.from_lr(lr, 3))
    problem = odeopt.BilevelProblem(rule, outer, lambda hp: odeopt.TimeGrid.from_lr(lr, 3))
    with pytest.raises(odeopt.CapturedTensorError, match="pass a function, grid=lambda hparams"):
        problem.value_and_grad(hparams, init, data, outer_data)
    problem = odeopt.BilevelProblem(rule, outer, rates)
    with pytest.raises(odeopt.CapturedTensorError, match="params was made from a tensor"):
        problem.value_and_grad(hparams, lambda hp: {"w": lr * hp["centre"]}, data, outer_data)
    moving = lambda hp: odeopt.TimeGrid(hp["lr"].exp().cumsum(0))  # noqa: E731
    problem = odeopt.BilevelProblem(rule, outer, moving)
    with pytest.raises(odeopt.InputError, match="begin at a fixed time"):
        problem.value_and_grad(hparams, init, data, outer_data)


def test_a_grid_of_tasks_is_refused(case):
    data, hparams, outer_data = case
    grid = lambda hp: odeopt.TimeGrid.uniform(hp["lr"][:2].exp(), 3)  # noqa: E731
    problem = odeopt.BilevelProblem(odeopt.GradientFlow(loss), outer, grid)
    with pytest.raises(odeopt.InputError, match="grid holds 2 tasks, but a BilevelProblem has"):
        problem.value_and_grad(hparams, init, data, outer_data)
    with pytest.raises(odeopt.InputError, match="grid holds 2 tasks, but a BilevelProblem has"):
        odeopt.BilevelProblem(odeopt.GradientFlow(loss), outer, grid(hparams))


@pytest.mark.parametrize("grid", [0.1, lambda hparams: 0.1])
def test_other_grids_are_refused(case, grid):
    data, hparams, outer_data = case
    with pytest.raises(
        odeopt.InputError, match=r"grid is 0\.1; expected a TimeGrid, or a function"
    ):
        odeopt.BilevelProblem(odeopt.SGD(loss), outer, grid).value_and_grad(
            hparams, init, data, outer_data
        )
