"""What odeopt does with the cases of TorchOpt's tests: optimisers, trees, schedules, minimisers."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from support.peers import RIGHT, Loop, Refused, Right, check, draw, mse
from torch import nn

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree


class Layer(nn.Module):
    """A layer with a module and a parameter that it does not use."""

    def __init__(self, inputs, outputs) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.unused = nn.Linear(1, 1, bias=False)
        self.spare = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return self.linear(x)


def classifier():
    return nn.Sequential(
        Layer(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(),
        nn.Linear(4, 3, bias=False), nn.Softmax(dim=-1),
    )  # fmt: skip


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), (batch[1][:, 0] > 0).long())


def classifying(optimizer, make=classifier, **options):
    """A loop of a classifier, in which Adam's eps is above the rounding of vanishing gradients."""
    if optimizer in ("Adam", "AdamW", "Adamax", "RAdam", "RMSprop"):
        options.setdefault("eps", 1e-3)
    return Loop(make, optimizer, options, classified)


UNSUPPORTED = Refused(
    odeopt.CompatibilityError, "differentiable=True, which is not supported: leave differentiable"
)
TOLD = Refused(odeopt.OdeoptWarning, r"does not depend on 0\.spare, 0\.unused")
OPTIMIZERS = {
    "sgd": (classifying("SGD"), RIGHT),
    "sgd, momentum": (classifying("SGD", momentum=0.1), RIGHT),
    "sgd, dampening": (classifying("SGD", momentum=0.1, dampening=0.5), RIGHT),
    "sgd, nesterov": (classifying("SGD", momentum=0.1, nesterov=True), RIGHT),
    "sgd, weight decay": (classifying("SGD", small, weight_decay=0.01), RIGHT),
    "sgd, weight decay of unused parts": (classifying("SGD", weight_decay=0.01), TOLD),
    "sgd, maximize": (classifying("SGD", maximize=True), RIGHT),
    "sgd, foreach": (classifying("SGD", momentum=0.9, foreach=True), RIGHT),
    "adam": (classifying("Adam"), RIGHT),
    "adam, betas": (classifying("Adam", betas=(0.95, 0.9995)), RIGHT),
    "adam, weight decay": (classifying("Adam", small, weight_decay=0.01), RIGHT),
    "adam, amsgrad": (classifying("Adam", amsgrad=True), RIGHT),
    "adam, fused": (classifying("Adam", fused=True), RIGHT),
    "adam, maximize": (classifying("Adam", maximize=True), RIGHT),
    "adam, differentiable": (
        classifying("Adam", differentiable=True), UNSUPPORTED,
    ),
    "adamw": (classifying("AdamW", small), RIGHT),
    "adamw, betas and decay": (
        classifying("AdamW", small, betas=(0.95, 0.9995), weight_decay=0.1), RIGHT,
    ),
    "adamw of unused parts": (classifying("AdamW"), TOLD),
    "adamw, maximize": (classifying("AdamW", small, maximize=True), RIGHT),
    "rmsprop": (classifying("RMSprop"), RIGHT),
    "rmsprop, momentum": (classifying("RMSprop", alpha=0.9, momentum=0.1), RIGHT),
    "rmsprop, centered": (classifying("RMSprop", small, centered=True, weight_decay=0.01), RIGHT),
    "adadelta": (classifying("Adadelta"), RIGHT),
    "adagrad": (classifying("Adagrad", initial_accumulator_value=0.1), RIGHT),
    "adamax": (classifying("Adamax"), RIGHT),
    "radam": (classifying("RAdam"), RIGHT),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, device):
    check(*OPTIMIZERS[name], device)


class Parts(NamedTuple):
    """A tree with names."""

    first: torch.Tensor
    rest: tuple


TREES = {
    "tensor": lambda a, b: torch.cat([a, b]),
    "number": lambda a, b: a[0] * b[0],
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, [b, []]],
    "dictionary": lambda a, b: {"b": b, "a": {"c": a, "nothing": {}}},
    "ordered": lambda a, b: OrderedDict(z=a, y=b),
    "named": lambda a, b: Parts(a, (b,)),
}
RULES = {
    "sgd": (lambda loss: odeopt.SGD(loss, momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "adam": (odeopt.Adam, torch.optim.Adam, {}),
    "adamw": (
        lambda loss: odeopt.AdamW(loss, weight_decay=0.1), torch.optim.AdamW,
        {"weight_decay": 0.1},
    ),
    "rmsprop": (lambda loss: odeopt.RMSprop(loss, eps=1e-3), torch.optim.RMSprop, {"eps": 1e-3}),
}  # fmt: skip


def energy(params, batch):
    return sum((leaf - batch).cosh().sum() for leaf in tree.tensors(params))


def functional(rule, make, **rule_options):
    """A rule on a tree of tensors, beside the optimiser of torch on its leaves."""

    def case(device):
        ours, torchs, options = RULES[rule]
        generator = torch.Generator().manual_seed(3)
        pieces = [torch.randn(2, generator=generator).to(device) for _ in "ab"]
        params, batch = make(*pieces), torch.tensor(0.3, device=device)
        grid = odeopt.TimeGrid.from_lr(0.1, 4)
        res = odeopt.ODEOptimizer(ours(energy)).value_and_grad(energy)(params, batch, grid, batch)
        leaves = [leaf.clone().requires_grad_() for leaf in tree.tensors(params)]
        optimizer = torchs(leaves, lr=0.1, **options)
        for _ in range(4):
            optimizer.zero_grad()
            energy(leaves, batch).backward()
            optimizer.step()
        yield res.value, energy(leaves, batch).detach()
        start = tree.map_tensors(lambda x: x.clone().requires_grad_(), params)
        value = energy(unroll(ours(energy), start, batch, grid.dt.to(device)), batch)
        assert tree.structure(res.grads.params) == tree.structure(params)
        yield tree.tensors(res.grads.params), list(torch.autograd.grad(value, tree.tensors(start)))

    return case


FUNCTIONAL = {
    **{f"{rule} of a dictionary": (functional(rule, TREES["dictionary"]), RIGHT) for rule in RULES},
    **{f"sgd of a {kind}": (functional("sgd", make), RIGHT) for kind, make in TREES.items()},
    "sgd of an empty tree": (
        functional("sgd", lambda a, b: {"nothing": []}),
        Refused(odeopt.InputError, "params holds no tensor"),
    ),
    "sgd of None": (
        functional("sgd", lambda a, b: None), Refused(odeopt.InputError, "is a NoneType"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_optimizers(name, device):
    check(*FUNCTIONAL[name], device)


def negative_loss(device):
    """In place of maximize=True."""
    *batches, _ = draw(4, device)
    loop = Loop(small, "SGD", {"momentum": 0.9})
    model, twin = (loop.build(device) for _ in "ab")
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, maximize=True)
    with loop.recorded(model) as inner:
        for batch in batches:
            inner.step(lambda model, batch: -classified(model, batch), batch)
            optimizer.zero_grad()
            classified(twin, batch).backward()
            optimizer.step()
    yield list(inner.model.parameters()), [p.detach() for p in twin.parameters()]


def scheduled(make):
    """A schedule of torch, in a recorded loop and in one of torch."""

    def case(device):
        loop = Loop(small)
        model, twin = (loop.build(device) for _ in "ab")
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, twin)]
        schedules = [make(optimizer) for optimizer in optimizers]
        with odeopt.RecordedLoop(model, optimizers[0]) as inner:
            for batch in draw(5, device):
                inner.step(classified, batch)
                optimizers[1].zero_grad()
                classified(twin, batch).backward()
                optimizers[1].step()
                for schedule in schedules:
                    schedule.step()
        yield list(inner.model.parameters()), [p.detach() for p in twin.parameters()]

    return case


def learned_schedule(device):
    """A rate that decays by a learned factor."""
    *batches, outer = draw(4, device)
    loop = Loop(small)
    model, twin = (loop.build(device) for _ in "ab")
    found, expected = (torch.tensor(0.8, requires_grad=True) for _ in "ab")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    values = dict(twin.named_parameters())
    with odeopt.RecordedLoop(model, optimizer) as inner:
        for k, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = 0.1 * found**k
            inner.step(classified, batch)
            out = torch.func.functional_call(twin, values, (batch[0],))
            value = nn.functional.cross_entropy(out, (batch[1][:, 0] > 0).long())
            gradients = torch.autograd.grad(value, list(values.values()), create_graph=True)
            rate = (0.1 * expected**k).to(device)
            pairs = zip(values.items(), gradients, strict=True)
            values = {name: p - rate * g for (name, p), g in pairs}
    inner.backward(mse, outer)
    out = torch.func.functional_call(twin, values, (outer[0],))
    yield found.grad, torch.autograd.grad((out - outer[1]).square().mean(), expected)[0]


def clipped(device):
    """TorchOpt's chain of a clip and a rule."""
    loop = Loop(small, choices={"gradient_transform": odeopt.clip_by_norm(0.05)})
    model, twin = (loop.build(device) for _ in "ab")
    optimizer = torch.optim.SGD(twin.parameters(), 0.05)
    with loop.recorded(model) as inner:
        for batch in draw(3, device):
            inner.step(classified, batch)
            optimizer.zero_grad()
            classified(twin, batch).backward()
            norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
            assert norm > 0.05
            optimizer.step()
    yield list(inner.model.parameters()), [p.detach() for p in twin.parameters()]


def hooked(device):
    """A hook that replaces NaN in the gradient of a parameter."""
    loop = Loop(small)
    model = loop.build(device)
    model[0].weight.register_hook(torch.nan_to_num)
    loop.recorded(model)


def without_nan(gradients):
    return tree.map_tensors(torch.nan_to_num, gradients)


def in_single_precision(model, batch):
    return classified(model, tree.map_tensors(torch.Tensor.float, batch))


def single_precision(device):
    for pair in Loop(lambda: small().float(), loss=in_single_precision)(device):
        yield tree.map_tensors(torch.Tensor.double, pair)


def on_the_meta_device(device):
    model = nn.Linear(3, 1, device="meta")
    odeopt.RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1))


def tasks_one_by_one(device):
    """The module is not changed, so that nothing is to be recovered between tasks."""
    torchopt = pytest.importorskip("torchopt")
    loop = Loop(small)
    model, twin = (loop.build(device) for _ in "ab")
    optimizer = torchopt.MetaSGD(twin, lr=0.05)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (twin, optimizer)]
    initial = list(twin.parameters())
    total = torch.zeros((), device=device)
    for batch in draw(3, device):
        with loop.recorded(model) as inner:
            for _ in range(2):
                inner.step(classified, batch)
                optimizer.step(classified(twin, batch))
        inner.backward(classified, batch)
        total = total + classified(twin, batch)
        for part, state in zip((twin, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, state)
    expected = torch.autograd.grad(total, initial)
    yield [p.grad for p in model.parameters()], list(expected)


def stopped_gradient(device):
    """Written back, a loop goes on without its past."""
    loop = Loop(small, "Adam")
    *batches, outer = draw(4, device)
    model = loop.build(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    with odeopt.RecordedLoop(model, optimizer) as inner:
        inner.step(classified, batches[0])
    inner.write_back()
    with odeopt.RecordedLoop(model, optimizer) as inner:
        pass
    found = inner.value_and_grad(classified, outer).grads.params
    expected = torch.autograd.grad(classified(model, outer), list(model.parameters()))
    yield list(found.values()), list(expected)


SITUATIONS = {
    "maximize by the negative loss": (negative_loss, Right(1e-13)),
    "linear schedule": (
        scheduled(lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=4)), Right(1e-13),
    ),
    "exponential schedule": (
        scheduled(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)), Right(1e-13),
    ),
    "learned schedule": (learned_schedule, RIGHT),
    "clipped gradients": (clipped, Right(1e-13)),
    "hook of a parameter": (hooked, Refused(odeopt.CompatibilityError, "there is a hook")),
    "NaN replaced": (Loop(small, choices={"gradient_transform": without_nan}), RIGHT),
    "single precision": (single_precision, Right(1e-5)),
    "tasks one by one": (tasks_one_by_one, RIGHT),
    "stopped gradient": (stopped_gradient, RIGHT),
    "meta device": (on_the_meta_device, Refused(odeopt.InputError, "on the meta device")),
    "no derivative": (
        Loop(small, loss=lambda m, b: classified(m, b).detach()),
        Refused(odeopt.InputError, "does not depend on the parameters"),
    ),
    "no parameters": (
        lambda device: odeopt.from_module(nn.Identity(), mse),
        Refused(odeopt.InputError, "choose at least one"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_situations(name, device):
    check(*SITUATIONS[name], device)


def ridge(params, batch, hparams):
    x, y = batch
    return 0.5 * (x @ params - y).square().mean() + 0.5 * hparams.exp() * params.square().sum()


def fit(params, batch, hparams=None):
    return (batch[0] @ params - batch[1]).square().mean()


def of_a_minimiser(steps=400, **choices):
    """The gradient w.r.t. the strength of ridge regression, beside that of its closed solution."""

    def case(device):
        train, held_out = draw(2, device, 3, 1)
        strength = torch.tensor(-1.0, device=device, requires_grad=True)
        x, y = train
        gram = x.T @ x / len(x) + strength.exp() * torch.eye(3, device=device)
        best = torch.linalg.solve(gram, x.T @ y / len(x))
        (expected,) = torch.autograd.grad(fit(best, held_out), strength)
        opt = odeopt.ODEOptimizer(
            odeopt.GradientFlow(ridge), adjoint=odeopt.ImplicitAdjoint(**choices)
        )
        grid = odeopt.TimeGrid.from_lr(0.3, steps)
        start = torch.zeros(3, 1, device=device)
        res = opt.value_and_grad(fit)(start, train, grid, held_out, strength.detach())
        yield res.value, fit(best, held_out).detach()
        yield res.grads.hparams, expected

    return case


def of_a_proximal_minimiser(device):
    """The gradient w.r.t. the centre of iMAML's regulariser."""
    train, held_out = draw(2, device, 3, 1)
    centre = torch.full((3, 1), 0.2, device=device, requires_grad=True)
    x, y = train
    gram = 2 * x.T @ x / len(x) + 1.5 * torch.eye(3, device=device)
    best = torch.linalg.solve(gram, 2 * x.T @ y / len(x) + 1.5 * centre)
    (expected,) = torch.autograd.grad(fit(best, held_out), centre)
    opt = odeopt.ODEOptimizer(odeopt.RegularizedFlow(fit, 1.5), adjoint=odeopt.ImplicitAdjoint())
    grid = odeopt.TimeGrid.from_lr(0.2, 200)
    res = opt.value_and_grad(fit)(centre.detach(), train, grid, held_out)
    yield res.grads.params, expected


def root_without_a_potential(device):
    opt = odeopt.ODEOptimizer(lambda t, y, *rest: -y, adjoint=odeopt.ImplicitAdjoint())
    call = opt.value_and_grad(lambda params, batch: params.sum())
    call(torch.ones(2, device=device), None, odeopt.TimeGrid.from_lr(0.5, 40), None)


IMPLICIT = {
    "conjugate gradients": (of_a_minimiser(), Right(1e-9)),
    "Neumann series": (
        of_a_minimiser(linear_solver=odeopt.Neumann(steps=100, rate=0.3)), Right(1e-9),
    ),
    "too few steps": (
        of_a_minimiser(2), Refused(odeopt.OdeoptWarning, "has not converged"),
    ),
    "proximal": (of_a_proximal_minimiser, Right(1e-9)),
    "no potential": (
        root_without_a_potential, Refused(odeopt.CompatibilityError, "scalar potential"),
    ),
    "linear solver that is none": (
        of_a_minimiser(linear_solver="cg"), Refused(odeopt.InputError, "linear_solver is 'cg'"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_gradients(name, device):
    check(*IMPLICIT[name], device)


BESIDE_TORCHOPT = {
    "sgd": ("SGD", "MetaSGD", {}),
    "sgd, momentum": ("SGD", "MetaSGD", {"momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", "MetaAdam", {"betas": (0.95, 0.9995)}),
    "adamw": ("AdamW", "MetaAdamW", {"weight_decay": 0.1}),
    "rmsprop": ("RMSprop", "MetaRMSProp", {"alpha": 0.9, "momentum": 0.1}),
}


@pytest.mark.parametrize("name", BESIDE_TORCHOPT)
def test_gradients_are_those_of_torchopt(name, device):
    torchopt = pytest.importorskip("torchopt")
    kind, theirs, options = BESIDE_TORCHOPT[name]
    *batches, outer = draw(4, device)
    loop = Loop(small, kind, options, classified)
    model, twin = (loop.build(device) for _ in "ab")
    initial = list(twin.parameters())
    optimizer = getattr(torchopt, theirs)(twin, lr=0.05, **options)
    with loop.recorded(model) as inner:
        for batch in batches:
            inner.step(classified, batch)
            optimizer.step(classified(twin, batch))
    expected = torch.autograd.grad(classified(twin, outer), initial)
    found = inner.value_and_grad(classified, outer).grads.params
    assert relative_error(list(found.values()), list(expected)) < 1e-9
