"""Modules in training mode: running statistics are state, dropout has a seed for each step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import odeopt
from odeopt.testing import relative_error
from odeopt.tools import tree
from odeopt.tools.seeds import seeded

STEPS = 5


def mse(model, batch):
    return (model(batch[0])[..., 0] - batch[1]).square().mean()


@pytest.fixture
def data(device):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, generator=generator)
    return x.to(device), y.to(device)


def network(device, dropout=0.0, **norm):
    layers = [nn.Linear(3, 5), nn.BatchNorm1d(5, **norm), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(5, 1)).to(device)


def train_in_torch(model, optimizer, stream, objective=mse):
    for k in range(STEPS):
        seed, device = stream.step_seed(k), next(model.parameters()).device
        optimizer.zero_grad()
        with seeded(0 if seed is None else seed, device):
            objective(model, stream(k)).backward()
        optimizer.step()


@given(seed=st.integers(0, 50), drop=st.sampled_from([0.0, 0.5]), adapt_all=st.booleans())
def test_the_trained_module_is_torchs_statistics_included(device, data, seed, drop, adapt_all):
    torch.manual_seed(seed)
    model = network(device, drop)
    adapt = (lambda name: True) if adapt_all else (lambda name: not name.startswith("4"))
    problem = odeopt.from_module(model, mse, adapt)
    rule = odeopt.Adam(problem.loss, buffers=problem.buffers)
    stream = odeopt.Stream.minibatches(data, 4, seed, random_loss=True)
    grid = odeopt.TimeGrid.from_lr(0.02, STEPS)
    sol = odeopt.ODEOptimizer(rule).solve(problem.params, stream, grid, problem.hparams)
    moved = [p for name, p in model.named_parameters() if name in problem.params]
    train_in_torch(model, torch.optim.Adam(moved, lr=0.02), stream)
    expected = {name: p for name, p in model.named_parameters() if name in problem.params}
    assert relative_error(sol.params, expected) < 1e-12
    statistics = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    assert sorted(sol.state.buffers) == sorted(statistics)
    assert (
        relative_error(dict(sorted(sol.state.buffers.items())), dict(sorted(statistics.items())))
        < 1e-12
    )


@given(
    micro=st.sampled_from([1, 3]), drop=st.sampled_from([0.0, 0.3]),
    checkpoints=st.sampled_from([odeopt.Every(1), odeopt.Binomial(2)]),
)  # fmt: skip
def test_the_gradient_is_that_of_the_loop_with_the_statistics_used_in_validation(
    device, data, micro, drop, checkpoints
):
    torch.manual_seed(0)
    problem = odeopt.from_module(network(device, drop), mse)
    rule = odeopt.SGD(problem.loss, momentum=0.9, buffers=problem.buffers, micro_batches=micro)
    stream = odeopt.Stream.constant(data, seed=3)
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), problem.params)
    state, consts = rule.init(start, None)
    for k in range(STEPS):
        index, lr = (torch.tensor(float(v), device=device) for v in (k, 0.05))
        with seeded(stream.step_seed(k), device):
            state = rule.update(index, lr, state, consts, None, data)
    value = problem.evaluate(state.params, data, buffers=state.buffers)
    expected = torch.autograd.grad(value, tree.tensors(start))
    opt = odeopt.ODEOptimizer(rule, checkpoints=checkpoints)
    grid = odeopt.TimeGrid.from_lr(0.05, STEPS)
    res = opt.value_and_grad(problem.evaluate)(problem.params, stream, grid, data)
    assert abs(res.value - value.detach()) < 1e-13
    assert relative_error(res.grads.params, list(expected)) < 1e-10


def test_micro_batches_have_statistics_of_their_own_as_in_gradient_accumulation(device, data):
    model = network(device)
    problem = odeopt.from_module(model, mse)
    rule = odeopt.SGD(problem.loss, buffers=problem.buffers, micro_batches=3)
    grid = odeopt.TimeGrid.from_lr(0.1, STEPS)
    sol = odeopt.ODEOptimizer(rule).solve(problem.params, data, grid)
    stream = odeopt.Stream(lambda k: data)

    def accumulated(model, batch):
        pieces = zip(batch[0].split(4), batch[1].split(4), strict=True)
        return sum(mse(model, piece) for piece in pieces) / 3

    train_in_torch(model, torch.optim.SGD(model.parameters(), lr=0.1), stream, accumulated)
    assert relative_error(sol.params, dict(model.named_parameters())) < 1e-12
    assert relative_error(sol.state.buffers["1.running_var"], model[1].running_var) < 1e-12


def test_each_task_has_statistics_of_its_own(device, data):
    problem = odeopt.from_module(network(device), mse)
    rule = odeopt.SGD(problem.loss, momentum=0.9, buffers=problem.buffers)
    opt, grid = odeopt.ODEOptimizer(rule), odeopt.TimeGrid.from_lr(0.02, STEPS)
    tasks = tuple(leaf.reshape(2, 6, *leaf.shape[1:]) for leaf in data)
    together = opt.value_and_grad(problem.evaluate, tasks=True)(problem.params, tasks, grid, tasks)
    alone = [
        opt.value_and_grad(problem.evaluate)(problem.params, own, grid, own).grads.params
        for own in (tuple(leaf[task] for leaf in tasks) for task in range(2))
    ]
    mean = tree.pytree.tree_map(lambda a, b: (a + b) / 2, *alone)
    assert relative_error(together.grads.params, mean) < 1e-10


def test_validation_drops_nothing_and_the_module_keeps_its_mode(device, data):
    model = network(device, dropout=0.5)
    problem = odeopt.from_module(model, mse)
    model[3].eval()
    values = {problem.evaluate(problem.params, data, buffers=problem.buffers).item() for _ in "ab"}
    assert len(values) == 1
    problem.loss(problem.params, data, buffers=problem.buffers)
    assert [child.training for child in model] == [True, True, True, False, True]


def test_the_module_itself_is_not_changed(device, data):
    model = network(device)
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    problem = odeopt.from_module(model, mse)
    rule = odeopt.SGD(problem.loss, buffers=problem.buffers)
    odeopt.ODEOptimizer(rule).solve(problem.params, data, odeopt.TimeGrid.from_lr(0.1, 3))
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items())


def test_running_statistics_in_a_flow_are_refused_with_advice(device, data):
    problem = odeopt.from_module(network(device), mse)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss))
    with pytest.raises(odeopt.InputError, match=r"1\.running_mean.*buffers=problem\.buffers"):
        opt.solve(problem.params, data, odeopt.TimeGrid.from_lr(0.1, 2))
    with pytest.raises(odeopt.InputError, match="evaluate needs the running statistics"):
        problem.evaluate(problem.params, data)


def test_statistics_that_count_calls_are_refused(device):
    with pytest.raises(odeopt.InputError, match="BatchNorm1d '1' has momentum=None"):
        odeopt.from_module(network(device, momentum=None), mse)


def test_a_loss_that_forgets_its_buffers_is_refused(device, data):
    rule = odeopt.SGD(lambda p, b, buffers: p.sum(), buffers={"n": torch.zeros(1, device=device)})
    opt = odeopt.ODEOptimizer(rule)
    with pytest.raises(odeopt.InputError, match=r"expected \(scalar, new buffers\)"):
        opt.solve(torch.ones(2, device=device), data, odeopt.TimeGrid.from_lr(0.1, 2))


def test_buffers_that_require_grad_are_refused():
    with pytest.raises(odeopt.CapturedTensorError, match="buffers carry no gradient"):
        odeopt.SGD(mse, buffers=torch.ones(1, requires_grad=True))


def test_a_batch_that_cannot_be_cut_is_refused(device, data):
    rule = odeopt.SGD(lambda p, b: (b[0] @ p).square().mean(), micro_batches=5)
    with pytest.raises(odeopt.InputError, match=r"\['12'\]; expected a single one, divisible by 5"):
        odeopt.ODEOptimizer(rule).solve(data[0][0], data, odeopt.TimeGrid.from_lr(0.1, 2))
