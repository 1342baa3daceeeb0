"""What a loss does that a derivative would not show is refused by name, or has no effect."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree

MODES = {"reverse": odeopt.ReverseMode, "forward": odeopt.ForwardOverReverse}
FIELDS = {
    "flow": odeopt.GradientFlow,
    "regularised": lambda loss: odeopt.RegularizedFlow(loss, 0.5),
    "heavy ball": lambda loss: odeopt.HeavyBall(loss, 1.0),
    "adam": odeopt.Adam,
    "micro-batches": lambda loss: odeopt.SGD(loss, micro_batches=2),
}


class Data:
    """A regression and a grid."""

    def __init__(self, device, dtype=torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        draw = lambda *shape: torch.randn(shape, generator=generator).to(device, dtype)  # noqa: E731
        self.params = {"w": draw(2, 4), "v": draw(4)}
        self.batch, self.outer = (draw(8, 2), draw(8)), (draw(8, 2), draw(8))
        self.grid = odeopt.TimeGrid.from_lr(0.05, 4)

    def gradient(self, field, mode="reverse", **choices):
        opt = odeopt.ODEOptimizer(field, adjoint=odeopt.DiscreteAdjoint(MODES[mode]()), **choices)
        res = opt.value_and_grad(plain)(self.params, self.batch, self.grid, self.outer)
        return res.grads.params


def plain(params, batch):
    return (torch.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]).square().mean()


@pytest.mark.parametrize("field", FIELDS)
def test_a_captured_tensor_that_is_only_added_is_refused(field, device):
    """The gradient w.r.t. the parameters does not depend on it, but somebody wanted its own."""
    captured = torch.ones(3, device=device, requires_grad=True)
    loss = lambda params, batch: plain(params, batch) + captured.square().sum()  # noqa: E731
    data = Data(device)
    with pytest.raises(odeopt.CapturedTensorError, match="requires grad and is not one"):
        data.gradient(FIELDS[field](loss))
    opt = odeopt.ODEOptimizer(FIELDS[field](loss))
    with pytest.raises(odeopt.CapturedTensorError, match="requires grad and is not one"):
        opt.solve(data.params, data.batch, data.grid)


@pytest.mark.parametrize("field", FIELDS)
def test_a_parameter_that_is_differentiated_outside_is_no_captured_tensor(field, device):
    data = Data(device)
    opt = odeopt.ODEOptimizer(FIELDS[field](plain))

    def value(params):
        return plain(opt.solve(params, data.batch, data.grid).params, data.outer)

    found = torch.func.grad(value)(data.params)
    assert relative_error(found, data.gradient(FIELDS[field](plain))) < 1e-14


def partly_constant(params, batch):
    with torch.no_grad():
        size = params["w"].norm()
    return plain(params, batch) * size


@pytest.mark.parametrize("field", ["flow", "adam"])
def test_no_grad_counts_as_constant_or_is_refused(field, device):
    """A product by a forward pass would go through it: 9 % were measured."""
    data = Data(device)
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), data.params)
    rule = {"flow": odeopt.SGD, "adam": odeopt.Adam}[field](partly_constant)
    end = unroll(rule, start, data.batch, data.grid.dt)
    expected = torch.autograd.grad(plain(end, data.outer), tree.tensors(start))
    found = tree.tensors(data.gradient(FIELDS[field](partly_constant)))
    assert relative_error(found, list(expected)) < 1e-13
    with pytest.raises(odeopt.CompatibilityError, match=r"uses torch\.no_grad, which ForwardOver"):
        data.gradient(FIELDS[field](partly_constant), "forward")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("field", ["flow", "adam"])
def test_taking_data_of_a_parameter_is_refused(field, mode, device):
    loss = lambda params, batch: plain(params, batch) * params["w"].data.norm()  # noqa: E731
    with pytest.raises(odeopt.InputError, match=r"takes \.data .* use \.detach"):
        Data(device).gradient(FIELDS[field](loss), mode)


def test_taking_data_of_the_batch_is_not(device):
    loss = lambda params, batch: plain(params, (batch[0].data, batch[1]))  # noqa: E731
    data = Data(device)
    expected = data.gradient(odeopt.GradientFlow(plain))
    assert relative_error(data.gradient(odeopt.GradientFlow(loss)), expected) == 0


def in_autocast(params, batch):
    with torch.autocast(batch[0].device.type, torch.bfloat16):
        hidden = torch.tanh(batch[0] @ params["w"]) @ params["v"]
    return (hidden - batch[1]).square().mean()


def rounded(params, batch):
    return plain({name: leaf.bfloat16().to(leaf.dtype) for name, leaf in params.items()}, batch)


@pytest.mark.parametrize("loss", [in_autocast, rounded])
@pytest.mark.parametrize("field", ["flow", "adam"])
def test_half_precision_inside_the_loss_is_refused(field, loss, device):
    with pytest.raises(odeopt.InputError, match="half precision"):
        Data(device, torch.float32).gradient(FIELDS[field](loss))


def without_gradient(params, batch):
    with torch.no_grad():
        return plain(params, batch)


INDEPENDENT = {
    "detached": lambda params, batch: plain(params, batch).detach(),
    "no_grad": without_gradient,
    "constant": lambda params, batch: batch[1].square().mean(),
}


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("field", FIELDS)
def test_a_loss_that_does_not_depend_on_the_parameters_is_refused(field, name, device):
    """Torch's backward() refuses it; a gradient transform says zero."""
    with pytest.raises(odeopt.InputError, match="does not depend on the parameters"):
        Data(device).gradient(FIELDS[field](INDEPENDENT[name]))


def test_a_loss_with_auxiliary_output_depends_on_the_parameters(device):
    loss = lambda params, batch: (plain(params, batch), batch[0].detach())  # noqa: E731
    found = Data(device).gradient(odeopt.GradientFlow(loss, has_aux=True))
    assert relative_error(found, Data(device).gradient(odeopt.GradientFlow(plain))) == 0


def doubled(params, batch):
    with torch.no_grad():
        params["v"].mul_(2)
    return plain(params, batch)


def centred(params, batch):
    batch[0].sub_(batch[0].mean(0))
    return plain(params, batch)


@pytest.mark.parametrize("loss", [doubled, centred])
@pytest.mark.parametrize("field", ["flow", "adam"])
def test_an_argument_that_is_changed_in_place_is_refused(field, loss, device):
    """Centring twice is centring once, so that two evaluations agree."""
    with pytest.raises(odeopt.OdeoptError, match=r"in place.*x = x \* 2"):
        Data(device).gradient(FIELDS[field](loss))


def test_a_velocity_that_is_made_in_place_of_the_state_is_refused(device):
    """Two evaluations were the same tensor, and the end was 38 % off."""
    opt = odeopt.ODEOptimizer(lambda t, y, consts, hparams, batch: y.neg_(), odeopt.RK4())
    with pytest.raises(odeopt.InputError, match=r"loss \(or velocity\) changes .* in place"):
        opt.solve(torch.ones(3, device=device), None, odeopt.TimeGrid.uniform(1.0, 4))


def test_an_embedding_that_is_renormalised_is_refused(device):
    """Alone it is no view of a larger state, which torch would not let it change."""
    table = torch.nn.Embedding(4, 3, max_norm=0.1, device=device)
    parts = odeopt.from_module(table, lambda model, batch: (model(batch) - 1).square().mean())
    batch, grid = torch.arange(3, device=device), odeopt.TimeGrid.from_lr(0.1, 2)
    opt = odeopt.ODEOptimizer(odeopt.SGD(parts.loss))
    with pytest.raises(odeopt.InputError, match="max_norm"):
        opt.value_and_grad(parts.evaluate)(parts.params, batch, grid, batch)


def scripted_parts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(torch.nn.Linear(2, 1))
        function = torch.jit.script(_scripted)
        traced = torch.jit.trace(torch.nn.Linear(2, 1), torch.ones(3, 2))
    return {"module": module, "function": function, "traced": traced}


def _scripted(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x).mean()


class Holder:
    """An object that a loss looks into."""

    def __init__(self, part) -> None:
        self.inside = {"part": [part]}

    def loss(self, params, batch):
        return plain(params, batch) + self.inside["part"][0](batch[0]).mean()


@pytest.mark.parametrize("part", ["module", "function", "traced"])
@pytest.mark.parametrize("way", ["closure", "method", "global", "partial", "module"])
def test_torchscript_is_refused_by_name(part, way, device, monkeypatch):
    """Its second derivatives were 15 to 380 % off, without a word."""
    found = scripted_parts()[part]
    monkeypatch.setitem(globals(), "SCRIPTED", found)

    def by_global(params, batch):
        return plain(params, batch) + SCRIPTED(batch[0]).mean()  # noqa: F821

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = found

        def forward(self, x):
            return self.inner(x)

    net = Net()
    losses = {
        "closure": lambda params, batch: plain(params, batch) + found(batch[0]).mean(),
        "method": Holder(found).loss,
        "global": by_global,
        "partial": functools.partial(Holder(found).loss),
        "module": lambda params, batch: plain(params, batch) + net(batch[0]).mean(),
    }
    with pytest.raises(odeopt.CompatibilityError, match="TorchScript"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(losses[way]))


def test_torchscript_that_comes_later_is_refused_in_the_call(device):
    holder = Holder(lambda x: x.sum())
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(holder.loss))
    holder.inside["part"][0] = scripted_parts()["function"]
    data = Data(device)
    with pytest.raises(odeopt.CompatibilityError, match="function _scripted of TorchScript"):
        opt.value_and_grad(plain)(data.params, data.batch, data.grid, data.outer)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("rule", [odeopt.SGD, odeopt.Adam])
def test_a_product_sees_the_random_numbers_of_the_gradient(rule, tasks, micro_batches, device):
    """Forward over reverse evaluates the loss once more: 94 % were measured."""

    def loss(params, batch):
        hidden = torch.tanh(batch[0] @ params["w"])
        hidden = torch.nn.functional.dropout(hidden, 0.5)
        return (hidden @ params["v"] - batch[1]).square().mean()

    data, found = Data(device), {}
    batch, outer = data.batch, data.outer
    if tasks:
        batch, outer = (tuple(torch.stack([x, x + 1]) for x in b) for b in (batch, outer))
    for mode, differentiation in MODES.items():
        opt = odeopt.ODEOptimizer(
            rule(loss, micro_batches=micro_batches),
            adjoint=odeopt.DiscreteAdjoint(differentiation()),
        )
        stream = odeopt.Stream.constant(batch, seed=7)
        call = opt.value_and_grad(plain, tasks=tasks)
        found[mode] = call(data.params, stream, data.grid, outer).grads.params
    assert relative_error(found["forward"], found["reverse"]) < 1e-13
