"""Mistakes that a peer made on the way to exact gradients through training, made here by nobody.

They are those of bergson, a library for data attribution: gradients of many processes, random
numbers, kept states, epochs, dropout, and numbers that are not finite.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from support import distributed as cases
from torch import nn

import odeopt
from odeopt.testing import relative_error
from odeopt.tools import tree
from tests.checkpoint.conftest import Crash
from tests.properties import two_workers


@pytest.mark.slow
def test_two_workers_have_the_gradient_of_one_process(tmp_path):
    """Summed over ranks once too often, or divided by their number, it was off by a factor."""
    program = Path(two_workers.__file__)
    texts, codes = cases.finish(cases.start("gradient", tmp_path, program=program))
    assert codes == [0, 0], "\n".join(texts)
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in (0, 1)]
    expected = two_workers.gradient(lambda call: call)
    for part, other, own in zip(*found, expected, strict=True):
        assert relative_error(tree.tensors(part), tree.tensors(own)) < 1e-12
        assert relative_error(tree.tensors(other), tree.tensors(part)) == 0


def net(drop=0.5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(drop), nn.Linear(6, 1))


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def data(device, count=7):
    generator = torch.Generator().manual_seed(1)
    shapes = (8, 3), (8, 1)
    draw = lambda shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
    return [tuple(draw(shape) for shape in shapes) for _ in range(count)]


def record(model, batches, **choices):
    """A recorded loop of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 0.05, eps=1e-3)
    with odeopt.RecordedLoop(model, optimizer, seed=5, **choices) as inner:
        for batch in batches:
            inner.step(mse, batch)
    return inner


def gradient(model, batches, outer, **choices):
    return record(model, batches, **choices).value_and_grad(mse, outer).grads.params


def generators(device):
    """Where torch's generators are."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def test_random_numbers_are_given_back_and_drawn_again(device):
    """The state of the CUDA generator was saved with each step, and never put back."""
    *batches, outer = data(device)
    model = net().to(device)
    before = generators(device)
    inner = record(model, batches)
    assert all(map(torch.equal, before, generators(device)))
    first = inner.value_and_grad(mse, outer).grads.params
    assert all(map(torch.equal, before, generators(device)))
    torch.rand(3, device=device)  # what is drawn in between has no effect
    again = inner.value_and_grad(mse, outer).grads.params
    assert relative_error(again, first) == 0
    other = gradient(net(0.0).to(device), batches, outer)
    assert relative_error(first, other) > 0.1


@pytest.mark.parametrize("rule", [odeopt.SGD, odeopt.Adam])
def test_a_solve_gives_random_numbers_back_whenever_it_ends(rule, device):
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(4, generator=generator).to(device)
    calls = []

    def noisy(params, batch):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return (params * torch.rand_like(params) - batch).square().sum()

    stream = odeopt.Stream.constant(torch.ones(4, device=device), seed=3)
    call = odeopt.ODEOptimizer(rule(noisy)).value_and_grad(lambda p, b: p.square().sum())
    before = generators(device)
    with pytest.raises(KeyboardInterrupt):
        call(start, stream, odeopt.TimeGrid.from_lr(0.1, 6), None)
    assert all(map(torch.equal, before, generators(device)))
    call(start, stream, odeopt.TimeGrid.from_lr(0.1, 6), None)
    assert all(map(torch.equal, before, generators(device)))


TIERS = {
    "device": lambda folder: {},
    "host": lambda folder: {"store": odeopt.Host()},
    "disk": lambda folder: {"store": odeopt.Disk(folder)},
    "resumable": lambda folder: {"store": odeopt.Disk(folder, resume=True, seconds=0)},
}
SCHEDULES = {
    "all": lambda **where: odeopt.Every(1, **where),
    "some": lambda **where: odeopt.Every(4, **where),
    "few": lambda **where: odeopt.Binomial(2, **where),
}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_moments_and_masks_come_back_from_every_tier(schedule, tier, tmp_path, device):
    """States in memory came back without the optimiser's moments, or as the live tensors."""
    *batches, outer = data(device)
    expected = gradient(net().to(device), batches, outer)
    checkpoints = SCHEDULES[schedule](**TIERS[tier](tmp_path))
    found = gradient(net().to(device), batches, outer, checkpoints=checkpoints)
    assert relative_error(found, expected) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("point", [5, 9, 14, 18])
def test_an_interrupted_sweep_keeps_what_a_whole_one_keeps(schedule, point, tmp_path, device):
    """After a resumed run no more states were kept, and gradients were zero from there on."""
    start, batch = torch.linspace(0.5, 1.5, 5, device=device), torch.ones(5, device=device)
    limit, calls = [point], []

    def loss(params, batch):
        calls.append(1)
        if len(calls) == limit[0]:
            raise Crash
        return (params.sin() * batch).square().sum()

    def run(checkpoints):
        call = odeopt.ODEOptimizer(odeopt.Adam(loss), checkpoints=checkpoints).value_and_grad(
            lambda params, batch: params.cos().sum()
        )
        return call(start, batch, odeopt.TimeGrid.from_lr(0.05, 9), None)

    resumable = SCHEDULES[schedule](store=odeopt.Disk(tmp_path, resume=True, seconds=0))
    with pytest.raises(Crash):
        run(resumable)
    limit[0] = 0
    found, expected = run(resumable), run(SCHEDULES[schedule]())
    assert torch.equal(found.grads.params, expected.grads.params)
    assert torch.equal(found.grads.dt, expected.grads.dt)
    assert bool(expected.grads.dt.all())
    assert found.stats.stored_states == expected.stats.stored_states
    assert found.stats.replayed_steps == expected.stats.replayed_steps


STREAMS = {
    "tensors": lambda items, **options: odeopt.Stream.minibatches(items, 4, 3, **options),
    "dataset": lambda items, **options: odeopt.Stream.from_dataset(list(items), 4, 3, **options),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_every_epoch_has_an_order_of_its_own(kind):
    """All epochs had the order of the first; then they were shuffled twice."""
    stream, again = (STREAMS[kind](torch.arange(20)) for _ in "ab")
    epochs = [torch.cat([stream(5 * epoch + k) for k in range(5)]).tolist() for epoch in range(6)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    order = list(range(30))
    random.Random(0).shuffle(order)
    batches = {k: again(k).tolist() for k in order}
    assert [batches[k] for k in range(30)] == [
        epoch[4 * k : 4 * k + 4] for epoch in epochs for k in range(5)
    ]


@pytest.mark.parametrize("kind", STREAMS)
def test_without_shuffling_every_epoch_has_the_order_of_the_data(kind):
    stream = STREAMS[kind](torch.arange(20), shuffle=False)
    assert torch.cat([stream(k) for k in range(10)]).tolist() == 2 * list(range(20))


def functional_net():
    """Dropout that asks the module for its mode."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(3, 6), nn.Linear(6, 1)])

        def forward(self, x):
            hidden = nn.functional.dropout(torch.tanh(self.layers[0](x)), 0.5, self.training)
            return self.layers[1](hidden)

    return Net()


NETS = {"layer": net, "function": functional_net}


@pytest.mark.parametrize("make", NETS)
def test_dropout_is_that_of_the_mode_at_the_beginning(make, device):
    """A configured dropout did nothing, since nothing had called train()."""
    *batches, outer = data(device)
    dropped, kept = (NETS[make]().to(device).train(mode) for mode in (True, False))
    plain = nn.Sequential(*net(0.0)).to(device)
    expected = list(gradient(plain, batches, outer).values())
    assert relative_error(list(gradient(kept, batches, outer).values()), expected) < 1e-14
    assert relative_error(list(gradient(dropped, batches, outer).values()), expected) > 0.1
    assert (dropped.training, kept.training) == (True, False)


@pytest.mark.parametrize("make", NETS)
def test_a_module_taken_apart_keeps_its_mode(make, device):
    """Whatever is done to the module itself later on."""
    batch = data(device)[0]
    dropped, kept = (NETS[make]().to(device).train(mode) for mode in (True, False))
    losses = [odeopt.from_module(module, mse) for module in (dropped, kept)]
    dropped.eval()
    kept.train()
    values = []
    for parts in losses:
        torch.manual_seed(3)
        values.append([parts.loss(parts.params, batch), parts.loss(parts.params, batch)])
        assert relative_error(parts.evaluate(parts.params, batch), mse(dropped, batch)) < 1e-14
    assert values[0][0] != values[0][1]
    assert values[1][0] == values[1][1]
    assert relative_error(values[1][0], mse(dropped, batch)) < 1e-14


def logistic(params, batch):
    """Its gradient descent with a rate of 1 is the map 4 u (1 - u), which doubles errors."""
    return (batch * (4 * params.pow(3) / 3 - 3 * params.square() / 2)).sum()


def test_a_chaotic_loop_has_the_huge_gradient_that_it_has(device):
    start, batch = torch.tensor([0.2, 0.31], device=device), torch.ones(2, device=device)
    opt = odeopt.ODEOptimizer(odeopt.SGD(logistic))
    call = opt.value_and_grad(lambda params, batch: params.sum())
    found = call(start, batch, odeopt.TimeGrid.from_lr(1.0, 20), batch).grads.params
    slope, u = torch.ones_like(start), start
    for _ in range(20):
        slope, u = slope * (4 - 8 * u), u - (4 * u.square() - 3 * u)
    assert relative_error(found, slope) < 1e-7
    assert float(found.abs().min()) > 1e3


def far(params, batch=None):
    """An outer loss after which thirty doublings overflow."""
    return 1e300 * params.sum()


def test_a_chaotic_loop_that_overflows_has_no_gradient(device):
    """Gradients of rough trainings were NaN, and were handed out."""
    start, batch = torch.tensor([0.2, 0.31], device=device), torch.ones(2, device=device)
    opt, grid = odeopt.ODEOptimizer(odeopt.SGD(logistic)), odeopt.TimeGrid.from_lr(1.0, 80)
    with pytest.raises(odeopt.DivergenceError, match="adjoint variable is not finite"):
        opt.value_and_grad(far)(start, batch, grid, batch)
    leaf = start.clone().requires_grad_()
    end = opt.solve(leaf, batch, grid).params
    assert bool(((end >= 0) & (end <= 1)).all())
    with pytest.raises(odeopt.DivergenceError, match="adjoint variable is not finite"):
        far(end).backward()
    assert leaf.grad is None


class Point(nn.Module):
    """A module that is its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor([0.2, 0.31]))


def test_a_recorded_loop_that_overflows_leaves_gradients_alone(device):
    model, one = Point().to(device), torch.ones((), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with odeopt.RecordedLoop(model, optimizer, checkpoints=odeopt.Binomial(20)) as inner:
        for _ in range(80):
            inner.step(lambda model, batch: logistic(model.u, batch), one)
    with pytest.raises(odeopt.DivergenceError, match="adjoint variable is not finite"):
        inner.backward(lambda model, batch: far(model.u))
    assert model.u.grad is None


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_what_has_no_gradient_does_not_make_others_nan(name, device):
    """Of the root of a mean of squares that is zero, as of an embedding that is never seen."""
    tokens = torch.tensor([0, 2, 2, 0], device=device)

    def energy(model, tokens):
        return (model(tokens).sin() - 1).square().mean()

    def grads(rows, tokens):
        torch.manual_seed(0)
        table = nn.Embedding(4, 3)
        table = nn.Embedding.from_pretrained(table.weight[rows].detach(), freeze=False).to(device)
        optimizer = getattr(torch.optim, name)(table.parameters(), 0.05)
        with odeopt.RecordedLoop(table, optimizer) as inner:
            for _ in range(4):
                inner.step(energy, tokens)
        return inner.value_and_grad(energy, tokens).grads.params["weight"]

    seen, alone = grads([0, 1, 2, 3], tokens), grads([0, 2], tokens // 2)
    assert relative_error(seen[[0, 2]], alone) < 1e-12
    assert not seen[[1, 3]].isnan().any()
