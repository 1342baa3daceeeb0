"""The gradient through an update rule is that of autograd through its unrolled loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree

RULES = {
    "sgd": odeopt.SGD,
    "nesterov": lambda loss, **own: odeopt.SGD(loss, momentum=0.9, nesterov=True, **own),
    "rmsprop": lambda loss, **own: odeopt.RMSprop(
        loss, momentum=0.5, centered=True, eps=1e-3, **own
    ),
    "adam": lambda loss, **own: odeopt.Adam(loss, amsgrad=True, **own),
    "adamw": odeopt.AdamW,
    "adam, eps_root": lambda loss, **own: odeopt.Adam(loss, eps_root=1e-3, maximize=True, **own),
    "adagrad": lambda loss, **own: odeopt.Adagrad(loss, 0.1, initial_accumulator_value=0.1, **own),
    "nadam": lambda loss, **own: odeopt.NAdam(loss, momentum_decay=0.3, **own),
    "radam": lambda loss, **own: odeopt.RAdam(loss, **{"betas": (0.8, 0.9), **own}),
    "adamax": odeopt.Adamax,
    "adadelta": lambda loss, **own: odeopt.Adadelta(loss, **{"eps": 1e-3, **own}),
    "asgd": lambda loss, **own: odeopt.ASGD(loss, 0.3, t0=2, averaged=True, **own),
    "rprop": lambda loss, weight_decay=0, **own: odeopt.Rprop(loss, **own),  # it has none
}
LEARNED = {
    "momentum": (odeopt.SGD, 0.9),
    "smoothing": (lambda loss, own: odeopt.RMSprop(loss, own, eps=1e-3), 0.9),
    "adam": (lambda loss, own: odeopt.Adam(loss, betas=(own, 0.99), eps=1e-4), 0.85),
    "adamw": (lambda loss, own: odeopt.AdamW(loss, betas=(0.9, own), eps=1e-4), 0.9),
    "eps_root": (lambda loss, own: odeopt.Adam(loss, eps_root=own), 1e-2),
    "adagrad": (lambda loss, own: odeopt.Adagrad(loss, own, eps=1e-2), 0.1),
    "nadam": (lambda loss, own: odeopt.NAdam(loss, betas=(own, own), eps=1e-4), 0.85),
    "momentum_decay": (lambda loss, own: odeopt.NAdam(loss, momentum_decay=own, eps=1e-4), 0.3),
    "radam": (lambda loss, own: odeopt.RAdam(loss, betas=(own, own), eps=1e-4), 0.9),
    "radam, never": (lambda loss, own: odeopt.RAdam(loss, betas=(own, own)), 0.5),
    "adamax": (lambda loss, own: odeopt.Adamax(loss, betas=(own, own)), 0.85),
    "adadelta": (lambda loss, own: odeopt.Adadelta(loss, own, eps=1e-3), 0.85),
    "alpha": (lambda loss, own: odeopt.ASGD(loss, 0.3, own), 0.7),
    "t0": (lambda loss, own: odeopt.ASGD(loss, t0=own, averaged=True), 2.5),
    "etas": (lambda loss, own: odeopt.Rprop(loss, (own, 1.2)), 0.5),
    "step_sizes": (lambda loss, own: odeopt.Rprop(loss, step_sizes=(1e-6, own)), 0.035),
}
"""Rules of one option that is learned, and about what it is."""
SCHEDULES = [odeopt.Every(1), odeopt.Every(3), odeopt.Density(2), odeopt.Binomial(2)]


def leaf(value):
    return tree.map_tensors(lambda x: x.detach().clone().requires_grad_(), value)


def reference(rule, regression, batch, lrs):
    """Gradients w.r.t. (params, hparams, learning rates) by autograd through the loop."""
    inputs = [leaf(regression.params), leaf(regression.hparams), leaf(lrs)]
    final = unroll(rule, inputs[0], batch, inputs[2], inputs[1])
    leaves = tree.tensors(inputs)
    value = regression.outer_loss(final, regression.outer, inputs[1])
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def ours(rule, regression, batch, lrs, **choices):
    opt = odeopt.ODEOptimizer(rule, **choices)
    grid = odeopt.TimeGrid.from_lr(lrs)
    res = opt.value_and_grad(regression.outer_loss)(
        regression.params, batch, grid, regression.outer, regression.hparams
    )
    return tree.tensors([res.grads.params, res.grads.hparams, res.grads.dt]), res


@given(
    name=st.sampled_from(sorted(RULES)), steps=st.integers(1, 12), seed=st.integers(0, 99),
    checkpoints=st.sampled_from(SCHEDULES), micro=st.sampled_from([1, 5]),
    clip=st.booleans(), learned=st.booleans(), streamed=st.booleans(),
)  # fmt: skip
def test_every_rule_with_every_option(
    regression, name, steps, seed, checkpoints, micro, clip, learned, streamed
):
    own = {"micro_batches": micro}
    if clip:
        own["gradient_transform"] = odeopt.clip_by_norm(0.3)
    if learned:
        own["weight_decay"] = {"w": lambda hp: hp["decay"], "out": 0.01}
        own["lr_scale"] = lambda hparams: torch.exp(hparams["rate"])
    rule = RULES[name](regression.weighted_loss, **own)
    batch = regression.stream(seed) if streamed else regression.data
    lrs = torch.linspace(0.05, 0.01, steps).to(regression.data[0])
    expected = reference(rule, regression, batch, lrs)
    found, _ = ours(rule, regression, batch, lrs, checkpoints=checkpoints)
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("name", LEARNED)
def test_learned_options(regression, name):
    make, start = LEARNED[name]
    rule = make(regression.weighted_loss, lambda hp: start * (1 + 0.1 * torch.tanh(hp["rate"])))
    lrs = torch.full((9,), 0.03).to(regression.data[0])
    expected = reference(rule, regression, regression.data, lrs)
    found, res = ours(rule, regression, regression.data, lrs)
    assert relative_error(found, expected) < 1e-10
    assert res.grads.hparams["rate"].abs() > 0


@pytest.mark.parametrize("mode", [odeopt.ReverseMode(), odeopt.ForwardOverReverse()])
@pytest.mark.parametrize("micro", [1, 4])
def test_both_modes_of_the_hessian_vector_product(regression, mode, micro):
    rule = odeopt.Adam(regression.weighted_loss, micro_batches=micro)
    lrs = torch.full((5,), 0.02).to(regression.data[0])
    expected = reference(rule, regression, regression.data, lrs)
    found, res = ours(rule, regression, regression.data, lrs, adjoint=odeopt.DiscreteAdjoint(mode))
    assert relative_error(found, expected) < 1e-10
    assert res.stats.hvps == 5


def test_one_product_per_step_and_what_micro_batches_cost(regression):
    lrs = torch.full((8,), 0.02).to(regression.data[0])
    for micro, gradients in ((1, 8), (4, 16)):
        rule = odeopt.Adam(regression.weighted_loss, micro_batches=micro)
        _, res = ours(rule, regression, regression.data, lrs)
        assert (res.stats.hvps, res.stats.gradient_evaluations) == (8, gradients)


@given(slots=st.integers(1, 6), name=st.sampled_from(sorted(RULES)))
def test_the_gradient_is_bitwise_that_of_every_state_kept(regression, slots, name):
    rule, stream = RULES[name](regression.weighted_loss), regression.stream()
    lrs = torch.full((9,), 0.02).to(regression.data[0])
    kept, _ = ours(rule, regression, stream, lrs)
    found, res = ours(rule, regression, stream, lrs, checkpoints=odeopt.Binomial(slots))
    assert res.stats.stored_states <= slots
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


def test_an_entry_that_never_gets_a_gradient_stays_exact(device):
    params = torch.tensor([0.5, -0.3], device=device)

    def half(params, batch):
        return (params[0] - batch).square()

    for rule in (
        odeopt.Adam(half), odeopt.RMSprop(half), odeopt.AdamW(half, amsgrad=True),
        odeopt.Adagrad(half), odeopt.NAdam(half), odeopt.RAdam(half), odeopt.Adamax(half),
        odeopt.RAdam(half, eps=0.0), odeopt.Adadelta(half), odeopt.Rprop(half),
        odeopt.ASGD(half, lambd=0.0),
    ):  # fmt: skip
        opt = odeopt.ODEOptimizer(rule)
        batch = torch.tensor(1.0, device=device)
        grid = odeopt.TimeGrid.from_lr(0.1, 5)
        res = opt.value_and_grad(lambda p, b: p.sum())(params, batch, grid, batch)
        shrink = 1.0 if not isinstance(rule, odeopt.AdamW) else (1 - 0.1 * 0.01) ** 5
        assert torch.isfinite(res.grads.params).all()
        assert abs(res.grads.params[1].item() - shrink) < 1e-14


def test_a_number_below_the_root_bounds_the_derivative_where_gradients_are_small(device):
    """Of a step of Adam w.r.t. a gradient near 0: up to lr / eps, or lr / sqrt(eps_root)."""
    start = torch.tensor([1e-9, 0.5], device=device)

    def derivative(**own):
        opt = odeopt.ODEOptimizer(odeopt.Adam(lambda p, b: 0.5 * p.square().sum(), **own))
        grid = odeopt.TimeGrid.from_lr(0.1, 1)
        res = opt.value_and_grad(lambda p, b: p[0])(start, start[:0], grid, start[:0])
        return res.grads.params[0].item()

    assert derivative(eps=1e-8) < -1e6
    assert derivative(eps=0.0, eps_root=1e-4) == pytest.approx(1 - 0.1 / 1e-2, rel=1e-6)


def test_the_derivative_of_rprop_is_that_of_almost_everywhere(regression):
    """The parameters move along with their start; of the rates only the first one counts."""
    rule = odeopt.Rprop(regression.weighted_loss)
    lrs = torch.full((8,), 0.03).to(regression.data[0])
    _, res = ours(rule, regression, regression.data, lrs)
    final = odeopt.ODEOptimizer(rule).solve(
        regression.params, regression.data, odeopt.TimeGrid.from_lr(lrs), regression.hparams
    )
    direct = torch.func.grad(regression.outer_loss)(final.params, regression.outer)
    assert relative_error(res.grads.params, direct) < 1e-14
    assert res.grads.dt[0].abs() > 0
    assert not res.grads.dt[1:].any()
    ends = []
    for change in (-1e-6, 1e-6):
        grid = odeopt.TimeGrid.from_lr(lrs + change)
        end = odeopt.ODEOptimizer(rule).solve(
            regression.params, regression.data, grid, regression.hparams
        )
        ends.append(regression.outer_loss(end.params, regression.outer, regression.hparams))
    assert relative_error((ends[1] - ends[0]) / 2e-6, res.grads.dt[0]) < 1e-6


def test_autograd_through_solve_agrees(regression):
    rule = odeopt.Adam(regression.weighted_loss)
    lrs = torch.full((5,), 0.02).to(regression.data[0])
    expected = reference(rule, regression, regression.data, lrs)
    inputs = [leaf(regression.params), leaf(regression.hparams), leaf(lrs)]
    sol = odeopt.ODEOptimizer(rule).solve(
        inputs[0], regression.data, odeopt.TimeGrid.from_lr(inputs[2]), inputs[1]
    )
    regression.outer_loss(sol.params, regression.outer, inputs[1]).backward()
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in tree.tensors(inputs)]
    assert relative_error(found, expected) < 1e-10


def test_truncated_and_first_order_adjoints(regression):
    grid = odeopt.TimeGrid.from_lr(0.02, 6)
    rule = odeopt.SGD(regression.plain_loss, momentum=0.5)
    batch = regression.data[:2]

    def gradient(adjoint):
        opt = odeopt.ODEOptimizer(rule, adjoint=adjoint)
        return opt.value_and_grad(regression.plain_loss)(
            regression.params, batch, grid, regression.outer
        ).grads.params

    exact = gradient(odeopt.DiscreteAdjoint())
    assert relative_error(gradient(odeopt.TruncatedAdjoint(6)), exact) < 1e-14
    assert relative_error(gradient(odeopt.TruncatedAdjoint(2)), exact) > 1e-3
    final = odeopt.ODEOptimizer(rule).solve(regression.params, batch, grid).params
    direct = torch.func.grad(regression.plain_loss)(
        tree.map_tensors(torch.Tensor.detach, final), regression.outer
    )
    assert relative_error(gradient(odeopt.FirstOrderAdjoint()), direct) < 1e-14


def test_observed_states_of_a_rule(regression):
    rule, batch = odeopt.Adam(regression.plain_loss), regression.data[:2]
    grid = odeopt.TimeGrid.from_lr(0.05, 6, observe=[2, 4])

    def path(params, outer, observed):
        return sum(
            regression.outer_loss(s.params, outer) for s in observed
        ) + regression.outer_loss(params, outer)

    res = odeopt.ODEOptimizer(rule).value_and_grad(path)(
        regression.params, batch, grid, regression.outer
    )
    start = leaf(regression.params)
    lrs = torch.full((6,), 0.05).to(batch[0])
    value = sum(
        regression.outer_loss(unroll(rule, start, batch, lrs[:n]), regression.outer)
        for n in (2, 4, 6)
    )
    expected = torch.autograd.grad(value, tree.tensors(start))
    assert relative_error(res.grads.params, list(expected)) < 1e-10
