"""Losses that draw random numbers, with a seed for each step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error
from odeopt.tools import tree
from odeopt.tools.seeds import seeded

STEPS = 6


@pytest.fixture
def noisy(device):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, 3, generator=generator).to(device)
    y = torch.randn(8, generator=generator).to(device)
    params = {"w": torch.randn(3, 6, generator=generator), "v": torch.randn(6, generator=generator)}
    return tree.map_tensors(lambda leaf: leaf.to(device), params), (x, y)


def loss(params, batch):
    hidden = torch.nn.functional.dropout(torch.tanh(batch[0] @ params["w"]), 0.4)
    noise = 0.1 * torch.randn_like(batch[1])
    return (hidden @ params["v"] - batch[1] + noise).square().mean()


def outer(params, batch):
    return (torch.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]).square().mean()


def unrolled(rule, params, stream, lr, device):
    state, consts = rule.init(params, None)
    for k in range(STEPS):
        index, rate = (torch.tensor(float(v), device=device) for v in (k, lr))
        with seeded(stream.step_seed(k), device):
            state = rule.update(index, rate, state, consts, None, stream(k))
    return rule.readout(state)


@given(
    seed=st.integers(0, 1000), micro=st.sampled_from([1, 2, 4]),
    checkpoints=st.sampled_from([odeopt.Every(1), odeopt.Every(4), odeopt.Binomial(2)]),
)  # fmt: skip
def test_replay_and_pull_see_the_numbers_of_the_forward_sweep(
    noisy, device, seed, micro, checkpoints
):
    params, data = noisy
    rule = odeopt.Adam(loss, micro_batches=micro)
    stream = odeopt.Stream.constant(data, seed)
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), params)
    value = outer(unrolled(rule, start, stream, 0.05, device), data)
    expected = torch.autograd.grad(value, tree.tensors(start))
    opt = odeopt.ODEOptimizer(rule, checkpoints=checkpoints)
    res = opt.value_and_grad(outer)(params, stream, odeopt.TimeGrid.from_lr(0.05, STEPS), data)
    assert abs(res.value - value.detach()) < 1e-14
    assert relative_error(res.grads.params, list(expected)) < 1e-10


def test_steps_and_seeds_have_numbers_of_their_own(noisy):
    params, data = noisy
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    ends = [
        opt.solve(params, odeopt.Stream.constant(data, seed), odeopt.TimeGrid.from_lr(0.1, steps))
        for seed, steps in ((0, 1), (0, 2), (1, 1), (0, 1))
    ]
    first, second, other, again = (end.params["w"] for end in ends)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(second - first, first - params["w"])


def test_the_world_around_draws_on_as_if_nothing_had_happened(noisy):
    params, data = noisy
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    opt = odeopt.ODEOptimizer(odeopt.SGD(loss))
    stream = odeopt.Stream.constant(data, 0)
    opt.value_and_grad(outer)(params, stream, odeopt.TimeGrid.from_lr(0.1, 3), data)
    assert torch.equal(torch.rand(3), expected)


def test_tasks_have_masks_of_their_own(noisy):
    params, data = noisy
    twice = tuple(leaf.expand(2, *leaf.shape) for leaf in data)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
    stream = odeopt.Stream.constant(twice, 0)
    sol = opt.solve(params, stream, odeopt.TimeGrid.from_lr(0.1, 2), tasks=True)
    assert not torch.equal(sol.params["w"][0], sol.params["w"][1])
    checked = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), checkpoints=odeopt.Binomial(1))
    grid = odeopt.TimeGrid.from_lr(0.1, 4)
    kept = opt.value_and_grad(outer, tasks=True)(params, stream, grid, twice).grads.params
    found = checked.value_and_grad(outer, tasks=True)(params, stream, grid, twice).grads.params
    assert relative_error(found, kept) == 0


def test_random_numbers_without_a_seed_are_refused_with_advice(noisy):
    params, data = noisy
    with pytest.raises(odeopt.NondeterminismError, match=r"Stream\.constant\(batch, seed=0\)"):
        odeopt.ODEOptimizer(odeopt.SGD(loss)).solve(params, data, odeopt.TimeGrid.from_lr(0.1, 2))


def test_seeded_steps_run_eagerly_when_compilation_is_asked_for(noisy):
    params, data = noisy
    stream, grid = odeopt.Stream.constant(data, 0), odeopt.TimeGrid.from_lr(0.1, 3)
    eager = odeopt.ODEOptimizer(odeopt.SGD(loss))
    traced = odeopt.ODEOptimizer(odeopt.SGD(loss), compile="trace")
    expected = eager.value_and_grad(outer)(params, stream, grid, data)
    with pytest.warns(odeopt.OdeoptWarning, match="steps draw random numbers"):
        found = traced.value_and_grad(outer)(params, stream, grid, data)
    assert found.stats.compile_misses == 0
    assert torch.equal(expected.value, found.value)
