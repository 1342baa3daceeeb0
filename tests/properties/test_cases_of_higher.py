"""What odeopt does with the cases of higher's tests: modules, optimisers, and ways to use them."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.utils.prune
from support.peer_modules import (
    Containers,
    Pair,
    Partly,
    Picture,
    attending,
    cell,
    dropping,
    embedded,
    mlp,
    norm_mlp,
    recurrent,
    shared_sequence,
    smooth_mlp,
    wrapped,
)
from support.peers import RIGHT, Loop, Refused, Right, check, draw, mse
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import odeopt
from odeopt.testing import relative_error
from tests.outer.loop.conftest import lend, unroll

MODULES = {
    "simple": (mlp, RIGHT),
    "shared submodule": (Pair, RIGHT),
    "shared layer in a sequence": (shared_sequence, RIGHT),
    "partly used": (Partly, RIGHT),
    "containers and buffers": (Containers, RIGHT),
    "batch norm": (norm_mlp, RIGHT),
    "batch norm, evaluating": (lambda: norm_mlp().eval(), RIGHT),
    "batch norm that counts": (
        lambda: nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1, momentum=None)),
        Refused(odeopt.InputError, "momentum=None"),
    ),
    "convolutions": (Picture, RIGHT),
    "rnn": (partial(recurrent, nn.RNN), RIGHT),
    "lstm": (partial(recurrent, nn.LSTM), RIGHT),
    "gru": (partial(recurrent, nn.GRU), RIGHT),
    "rnn cell": (partial(cell, nn.RNNCell), RIGHT),
    "lstm cell": (partial(cell, nn.LSTMCell), RIGHT),
    "gru cell": (partial(cell, nn.GRUCell), RIGHT),
    "dropout": (partial(dropping, True), RIGHT),
    "dropout, evaluating": (partial(dropping, False), RIGHT),
    "embedding": (partial(embedded, padding_idx=0), RIGHT),
    "embedding by frequency": (partial(embedded, scale_grad_by_freq=True), RIGHT),
    "embedding of largest norm": (
        partial(embedded, max_norm=0.5), Refused(odeopt.OdeoptError, "max_norm"),
    ),
    "embedding, sparse": (
        partial(embedded, sparse=True), Refused(odeopt.CompatibilityError, "sparse=True"),
    ),
    "embedding bag": (
        partial(embedded, nn.EmbeddingBag),
        Refused(odeopt.CompatibilityError, "no second derivative of _embedding_bag_backward"),
    ),
    "attention with weights": (partial(attending, "weights"), RIGHT),
    "transformer layer": (partial(attending, "layer"), RIGHT),
    "weight norm": (
        lambda: wrapped(lambda f, x: f(x), parametrizations.weight_norm(nn.Linear(3, 4))), RIGHT,
    ),
    "orthogonal": (
        lambda: wrapped(lambda f, x: f(x), parametrizations.orthogonal(nn.Linear(3, 4))), RIGHT,
    ),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 1)),
        Refused(odeopt.InputError, "forward pass changes the buffers"),
    ),
    "spectral norm, evaluating": (
        lambda: parametrizations.spectral_norm(nn.Linear(3, 1)).eval(), RIGHT,
    ),
    "pruned": (lambda: nn.utils.prune.l1_unstructured(nn.Linear(3, 1), "weight", 1), RIGHT),
    "checkpointed": (
        lambda: wrapped(lambda f, x: checkpoint(f, x, use_reentrant=False)),
        Refused(odeopt.CompatibilityError, r"torch\.utils\.checkpoint"),
    ),
    "in half precision": (lambda: mlp().half(), Refused(odeopt.InputError, "dtype torch.float16")),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name, device):
    make, outcome = MODULES[name]
    check(Loop(make), outcome, device)


TOLD = Refused(odeopt.OdeoptWarning, "does not depend on unused")
OTHERS = ("Adadelta", "Adagrad", "Adamax", "ASGD", "Rprop", "NAdam", "RAdam")
WITHOUT_RULE = {
    "Adafactor": "looks at each matrix as a whole",
    "SparseAdam": "takes sparse gradients only",
    "LBFGS": "searches along a line",
}
OPTIMIZERS = {
    "sgd": (Loop(mlp), RIGHT),
    "sgd, momentum": (Loop(mlp, "SGD", {"momentum": 0.1}), RIGHT),
    "sgd, nesterov": (Loop(mlp, "SGD", {"momentum": 0.1, "nesterov": True}), RIGHT),
    "sgd, weight decay": (Loop(mlp, "SGD", {"weight_decay": 0.1}), RIGHT),
    "sgd, groups": (Loop(mlp, "SGD", lrs=(0.2, 0.1)), RIGHT),
    "adam": (Loop(mlp, "Adam"), RIGHT),
    "adam, weight decay": (Loop(mlp, "Adam", {"weight_decay": 0.1}), RIGHT),
    "adam, groups": (Loop(mlp, "Adam", lrs=(0.2, 0.1)), RIGHT),
    "adam, shared submodule": (Loop(Pair, "Adam"), RIGHT),
    "adam, shared layer": (Loop(shared_sequence, "Adam"), RIGHT),
    "adam, partly used": (Loop(Partly, "Adam"), RIGHT),
    "adam, batch norm": (Loop(norm_mlp, "Adam", {"eps": 1e-3}), RIGHT),
    "adamw": (Loop(mlp, "AdamW"), RIGHT),
    "adamw, weight decay": (Loop(mlp, "AdamW", {"weight_decay": 0.1}), RIGHT),
    "adamw, shared submodule": (Loop(Pair, "AdamW"), RIGHT),
    "adamw, partly used": (Loop(Partly, "AdamW"), TOLD),
    "adamw, partly used, no decay": (Loop(Partly, "AdamW", {"weight_decay": 0.0}), RIGHT),
    "rmsprop": (Loop(mlp, "RMSprop", {"eps": 1e-3}), RIGHT),
    "rmsprop, momentum": (Loop(mlp, "RMSprop", {"eps": 1e-3, "momentum": 0.1}), RIGHT),
    "rmsprop, weight decay": (Loop(mlp, "RMSprop", {"eps": 1e-3, "weight_decay": 0.1}), RIGHT),
    "rmsprop, centered": (Loop(mlp, "RMSprop", {"eps": 1e-3, "centered": True}), RIGHT),
    "frozen layer": (Loop(mlp, "SGD", frozen=("0.",)), RIGHT),
    **{name: (Loop(mlp, name), RIGHT) for name in OTHERS},
    **{
        name: (Loop(mlp, name), Refused(odeopt.CompatibilityError, words))
        for name, words in WITHOUT_RULE.items()
    },
    "muon": (
        Loop(lambda: nn.Linear(3, 1, bias=False), "Muon"),
        Refused(odeopt.CompatibilityError, "looks at each matrix as a whole"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, device):
    check(*OPTIMIZERS[name], device)


def learned_rates_and_betas(device):
    """Tensors in the place of options, as higher's override has them."""
    *batches, outer = draw(4, device)
    lr = torch.tensor(0.3, requires_grad=True)
    betas = [torch.tensor(b, requires_grad=True) for b in (0.9, 0.99, 0.8, 0.88)]
    model, twin = (Loop(mlp).build(device) for _ in "ab")

    def groups(model):
        names = [n for n, _ in model.named_parameters()]
        return names[:2], names[2:]

    chosen = {}
    for names, pair in zip(groups(twin), (betas[:2], betas[2:]), strict=True):
        chosen |= dict.fromkeys(names, (lr, {"betas": tuple(pair)}))
    values, _, _ = unroll(twin, "Adam", [(mse, (batch,), chosen) for batch in batches])
    expected = torch.autograd.grad(lend(twin, values, mse, outer), [lr, *betas])
    own = dict(model.named_parameters())
    optimizer = torch.optim.Adam(
        [
            {"params": [own[n] for n in names], "betas": tuple(pair)}
            for names, pair in zip(groups(model), (betas[:2], betas[2:]), strict=True)
        ],
        lr=lr,
    )
    with odeopt.RecordedLoop(model, optimizer) as inner:
        for batch in batches:
            inner.step(mse, batch)
    inner.backward(mse, outer)
    yield [lr.grad, *(b.grad for b in betas)], list(expected)


def betas_that_change(device):
    """higher's override of one step."""
    model = mlp().to(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with odeopt.RecordedLoop(model, optimizer) as inner:
        inner.step(mse, *draw(1, device))
        optimizer.param_groups[0]["betas"] = (0.8, 0.9)
        inner.step(mse, *draw(1, device))


def a_sum_of_parameters(device):
    """An outer loss without data, of the parameters alone."""
    (batch,) = draw(1, device)
    model, twin = (Loop(mlp).build(device) for _ in "ab")
    with Loop(mlp).recorded(model) as inner:
        inner.step(mse, batch)
    res = inner.backward(lambda model, _: sum(p.sum() for p in model.parameters()))
    gradients = torch.autograd.grad(mse(twin, batch), list(twin.parameters()), create_graph=True)
    pairs = zip(twin.parameters(), gradients, strict=True)
    value = sum((p - 0.05 * g).sum() for p, g in pairs)
    yield res.value, value.detach()
    expected = torch.autograd.grad(value, list(twin.parameters()))
    yield [p.grad for p in model.parameters()], list(expected)


def no_gradients_wanted(device):
    """higher's track_higher_grads=False: a step alone makes no graph."""
    model = mlp().to(device)
    with Loop(mlp).recorded(model) as inner:
        loss = inner.step(mse, *draw(1, device))
    assert not loss.requires_grad
    assert all(p.grad is None for p in model.parameters())
    yield loss, mse(model, *draw(1, device)).detach()


def a_scaled_gradient(device):
    """higher's grad_callback."""
    found = [
        Loop(mlp, "SGD", lrs=(lr,), choices=choices)
        for lr, choices in [(0.05, {}), (0.5, {"gradient_transform": shrink})]
    ]
    pairs = zip(*(loop(device) for loop in found), strict=True)
    yield from ((with_callback, without) for (without, _), (with_callback, _) in pairs)


def shrink(gradients):
    return {name: 0.1 * g for name, g in gradients.items()}


def on_a_submodule(model, batch):
    return (model[4](model[3](model[2](model[1](model[0](batch[0]))))) - batch[1]).square().mean()


def with_its_own_parameters(model, batch):
    own = dict(model.named_parameters())
    return (torch.func.functional_call(model, own, (batch[0],)) - batch[1]).square().mean()


def penalised(model, batch):
    slope = torch.func.grad(lambda x: model(x).sum())(batch[0])
    return mse(model, batch) + slope.square().sum()


def penalised_by_autograd(model, batch):
    x = batch[0].clone().requires_grad_()
    slope = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    return mse(model, batch) + slope.square().sum()


def cross_entropy(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), (batch[1] > 0).double())


def hooked(model, batch):
    """A gradient that is doubled on its way through the layers."""
    out = model[:2](batch[0])
    out.register_hook(lambda g: 2 * g)
    return (model[2:](out) - batch[1]).square().mean()


def hook_inside(device):
    """As backpropagation has it: the hook is called in the second backward pass, too."""
    with pytest.warns(odeopt.OdeoptWarning, match="second backward pass"):
        return list(Loop(smooth_mlp, lrs=(0.3,), loss=hooked)(device))


def doing(what):
    """Steps with something done to the module or the loop in between."""

    def case(device):
        model = mlp().to(device)
        with Loop(mlp).recorded(model) as inner:
            inner.step(mse, *draw(1, device))
            what(inner, model)
            inner.step(mse, *draw(1, device))

    return case


def a_loss_tensor(device):
    model = mlp().to(device)
    with Loop(mlp).recorded(model) as inner:
        inner.step(mse(model, *draw(1, device)))


def a_module_copied(device):
    """A copy in between, which stays as it is."""
    model = mlp().to(device)
    with Loop(mlp).recorded(model) as inner:
        inner.step(mse, *draw(1, device))
        found, now = inner.model, copy.deepcopy(inner.model)
        inner.step(mse, *draw(1, device))
    yield list(found.parameters()), [p.detach() for p in now.parameters()]


def nested_gradients(device):
    """A graph of the gradient itself, which higher keeps."""
    start = torch.ones(3, device=device, requires_grad=True)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda u, batch: u.cosh().sum()))
    end = opt.solve(start, None, odeopt.TimeGrid.from_lr(0.1, 3)).params
    (gradient,) = torch.autograd.grad(end.square().sum(), start, create_graph=True)
    gradient.sum().backward()


SITUATIONS = {
    "learned rates and betas": (learned_rates_and_betas, RIGHT),
    "betas that change": (betas_that_change, Refused(odeopt.InputError, "only lr may change")),
    "sum of parameters": (a_sum_of_parameters, RIGHT),
    "no gradients wanted": (no_gradients_wanted, RIGHT),
    "callback that scales": (a_scaled_gradient, Right(1e-14)),
    "submodules called": (Loop(mlp, loss=on_a_submodule), RIGHT),
    "parameters handed to forward": (Loop(mlp, loss=with_its_own_parameters), RIGHT),
    "gradient penalty": (Loop(mlp, loss=penalised), RIGHT),
    "gradient penalty by autograd": (
        Loop(mlp, loss=penalised_by_autograd),
        Refused(odeopt.CompatibilityError, r"requires_grad_\(\).*torch\.func\.grad\(f\)\(x\)"),
    ),
    "hook of a tensor in the loss": (hook_inside, RIGHT),
    "cross entropy": (Loop(mlp, loss=cross_entropy), RIGHT),
    "module in another dtype": (
        doing(lambda inner, model: model.float()),
        Refused(odeopt.InputError, "parameters were changed since the loop began"),
    ),
    "module with other parameters": (
        doing(lambda inner, model: model.load_state_dict(mlp().state_dict())),
        Refused(odeopt.InputError, "parameters were changed since the loop began"),
    ),
    "module copied": (a_module_copied, RIGHT),
    "loop copied": (
        doing(lambda inner, model: copy.deepcopy(inner)), Refused(odeopt.InputError, "nor pickled"),
    ),
    "loop pickled": (
        doing(lambda inner, model: pickle.dumps(inner)), Refused(odeopt.InputError, "nor pickled"),
    ),
    "loss tensor": (a_loss_tensor, Refused(odeopt.InputError, "needs the function")),
    "lazy module": (
        lambda device: odeopt.from_module(nn.LazyLinear(2), mse),
        Refused(odeopt.InputError, "has no shape yet"),
    ),
    "no parameters": (
        lambda device: odeopt.from_module(nn.Tanh(), mse),
        Refused(odeopt.InputError, "choose at least one"),
    ),
    "gradient of a gradient": (
        nested_gradients, Refused(odeopt.SecondOrderError, "second derivative"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations(name, device):
    check(*SITUATIONS[name], device)


BESIDE_HIGHER = {
    "momentum": (mlp, "SGD", {"momentum": 0.9}),
    "shared, nesterov": (Pair, "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "recurrent": (partial(recurrent, nn.GRU), "SGD", {}),
    "batch norm": (norm_mlp, "SGD", {}),
    "shared, adam": (Pair, "Adam", {"eps": 1e-16}),
}


@pytest.mark.parametrize("name", BESIDE_HIGHER)
def test_gradients_are_those_of_higher(name, device):
    """Without Adam's eps, which higher adds at another place."""
    higher = pytest.importorskip("higher")
    make, kind, options = BESIDE_HIGHER[name]
    *batches, outer = draw(4, device)
    loop = Loop(make, kind, options)
    model, twin = (loop.build(device) for _ in "ab")
    optimizer = getattr(torch.optim, kind)(twin.parameters(), 0.05, **options)
    with higher.innerloop_ctx(twin, optimizer, copy_initial_weights=False) as (fmodel, diffopt):
        for batch in batches:
            diffopt.step(mse(fmodel, batch))
        value = mse(fmodel.eval(), outer)
        expected = torch.autograd.grad(value, list(twin.parameters()))
    with loop.recorded(model) as inner:
        for batch in batches:
            inner.step(mse, batch)
    res = inner.value_and_grad(mse, outer)
    assert relative_error(res.value, value.detach()) < 1e-12
    assert relative_error(list(res.grads.params.values()), list(expected)) < 1e-10
