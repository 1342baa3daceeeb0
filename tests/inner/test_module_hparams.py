"""Modules with hyperparameters of one's own: weights of examples, strengths, and frozen parts."""

from __future__ import annotations

import pytest
import torch
from support.module import is_head, make_batch, make_net, mse
from torch import nn

import odeopt
from odeopt.inner.module import ModuleHparams
from odeopt.tools import tree

STEPS, LR = 4, 0.1


def weighted(model, batch, hparams):
    x, y = batch
    error = (model(x) - y).square().mean(-1)
    decay = sum(p.square().sum() for p in model.parameters())
    return (hparams["weights"] * error).mean() + hparams["decay"].exp() * decay


def start(device):
    torch.manual_seed(0)
    count = len(make_batch(device)[0])
    own = {"weights": torch.rand(count, device=device), "decay": torch.tensor(-3.0, device=device)}
    return make_net(device), make_batch(device), own


def unrolled(net, batch, outer_batch, own, adapt):
    """Gradients w.r.t. frozen parameters and hyperparameters, by autograd through all steps."""
    named = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    own = tree.map_tensors(lambda leaf: leaf.clone().requires_grad_(), own)

    def value(params, batch):
        def model(x):
            return torch.func.functional_call(net, params, (x,))

        model.parameters = params.values
        return weighted(model, batch, own)

    params = dict(named)
    for _ in range(STEPS):
        moved = [name for name in params if adapt(name)]
        slopes = torch.autograd.grad(
            value(params, batch), [params[name] for name in moved], create_graph=True
        )
        params |= {n: params[n] - LR * g for n, g in zip(moved, slopes, strict=True)}
    frozen = [named[name] for name in named if not adapt(name)]
    return torch.autograd.grad(value(params, outer_batch), [*frozen, *own.values()])


@pytest.mark.parametrize("adapt", [lambda name: True, is_head], ids=["all", "head"])
@pytest.mark.parametrize("buffers", [False, True])
def test_the_gradient_is_that_of_an_unrolled_loop(adapt, buffers, device):
    net, batch, own = start(device)
    if buffers:
        net = nn.Sequential(*net, nn.BatchNorm1d(batch[1].shape[-1], momentum=0.5))
        net.to(device)
        net[-1].eval()
    outer_batch = tuple(leaf + 0.1 for leaf in batch)
    problem = odeopt.from_module(net, weighted, adapt, hparams=own)
    bilevel = odeopt.BilevelProblem(
        odeopt.SGD(problem.loss), problem.evaluate, odeopt.TimeGrid.from_lr(LR, STEPS)
    )
    res = bilevel.value_and_grad(problem.hparams, problem.params, batch, outer_batch)
    expected = unrolled(net, batch, outer_batch, own, adapt)
    found = tree.tensors(res.grads.hparams)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_as_the_hyperparameters_are(device):
    net, batch, own = start(device)
    problem = odeopt.from_module(net, weighted, hparams=own)
    assert problem.hparams is own
    both = odeopt.from_module(net, weighted, is_head, hparams=own)
    assert isinstance(both.hparams, ModuleHparams)
    assert both.hparams.own is own
    assert sorted(both.hparams.frozen) == ["0.bias", "0.weight"]
    call = odeopt.ODEOptimizer(odeopt.SGD(both.loss)).value_and_grad(both.evaluate)
    res = call(both.params, batch, odeopt.TimeGrid.from_lr(LR, 2), batch, both.hparams)
    assert sorted(res.grads.hparams.own) == ["decay", "weights"]


def test_a_learner_learns_them_too(device):
    net, _, own = start(device)
    problem = odeopt.from_module(net, weighted, hparams=own)
    data = [torch.stack([leaf, leaf + 1]) for leaf in make_batch(device)]
    pool = odeopt.TaskPool(tuple(data), tuple(data), batch_size=2)
    learner = odeopt.MetaLearner("maml", problem, pool, settings={"lr": 0.01, "steps": 2})
    learner.fit(2)
    assert sorted(learner.hparams) == ["decay", "weights"]
    assert not torch.equal(learner.hparams["weights"], own["weights"])


@pytest.mark.parametrize(("adapt", "hparams", "expected"), [
    (None, {"0.weigth": torch.zeros(1)}, "None, since every parameter is adapted"),
    (is_head, {"0.weight": 0}, "the frozen parameters"),
    (is_head, [torch.zeros(1)], "the frozen parameters"),
])  # fmt: skip
def test_other_hparams_than_the_frozen_ones_are_refused(adapt, hparams, expected, device):
    net, batch, _ = start(device)
    problem = odeopt.from_module(net, mse, adapt or (lambda name: True))
    with pytest.raises(odeopt.InputError, match=f"expected {expected}.*hparams=\\.\\.\\."):
        problem.loss(problem.params, batch, hparams)


def test_frozen_parameters_and_own_ones_come_together(device):
    net, batch, own = start(device)
    problem = odeopt.from_module(net, weighted, is_head, hparams=own)
    for wrong in (own, problem.hparams.frozen, None, problem.hparams._replace(own=None)):
        with pytest.raises(odeopt.InputError, match="ModuleHparams of the frozen parameters"):
            problem.loss(problem.params, batch, wrong)
    with pytest.raises(odeopt.InputError, match="expected your own"):
        odeopt.from_module(net, weighted, hparams=own).loss(
            {name: p.detach() for name, p in net.named_parameters()}, batch
        )


def test_an_objective_that_takes_no_hyperparameters_says_so(device):
    net, batch, own = start(device)
    problem = odeopt.from_module(net, mse, hparams=own)
    with pytest.raises(
        odeopt.InputError, match=r"objective cannot be called with \(model, batch, h"
    ):
        problem.loss(problem.params, batch, problem.hparams)
