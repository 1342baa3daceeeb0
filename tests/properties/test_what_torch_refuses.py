"""What torch refuses to differentiate works nevertheless, or is refused with what to do instead."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.backends import cuda as backends
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import odeopt
from odeopt.inner.attention import PLAIN_ATTENTION
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree


def draw(device, *shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def mse(params, batch):
    return (torch.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]).square().mean()


def problem(device):
    params = {"w": draw(device, 3, 4), "v": draw(device, 4, seed=2)}
    return params, (draw(device, 6, 3, seed=3), draw(device, 6, seed=4))


def gradient(loss, device, field=odeopt.SGD, tasks=0, **choices):
    params, batch = problem(device)
    if tasks:
        batch = tuple(torch.stack([leaf + i for i in range(tasks)]) for leaf in batch)
    call = odeopt.ODEOptimizer(field(loss), **choices).value_and_grad(mse, tasks=tasks > 0)
    return call(params, batch, odeopt.TimeGrid.from_lr(0.05, 3), batch)


class Old(torch.autograd.Function):
    """A function in the form of before `torch.func`."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


class New(torch.autograd.Function):
    """The same in the form of today."""

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


def hidden(params, batch):
    return batch[0] @ params["w"]


def penalised(params, batch):
    x = batch[0].clone().requires_grad_()
    out = torch.tanh(x @ params["w"]).sum()
    return torch.autograd.grad(out, x, create_graph=True)[0].square().sum()


def retained(params, batch):
    out = hidden(params, batch)
    out.retain_grad()
    return out.square().mean()


def backward(params, batch):
    value = mse(params, batch)
    value.backward()
    return value


def assigned(params, batch):
    params["w"].data = params["w"].data * 2
    return mse(params, batch)


def inferred(params, batch):
    with torch.inference_mode():
        size = params["w"].norm()
    return mse(params, batch) * size


def fused(params, batch):
    h = hidden(params, batch)[None, None]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        return nn.functional.scaled_dot_product_attention(h, h, h).square().mean()


def places(batch):
    return (batch[1] > 0).long()[:, None].expand(6, 2)


LOSSES = {
    "penalty": (penalised, r"requires_grad_\(\).*torch\.func\.grad\(f\)\(x\)"),
    "jacobian": (
        lambda p, b: torch.autograd.functional.jacobian(
            lambda x: (x @ p["w"]).sum(0), b[0], create_graph=True
        ).square().sum() + mse(p, b),
        r"torch\.func\.grad\(f\)\(x\), jacrev",
    ),
    "retain_grad": (retained, r"calls retain_grad\(\)"),
    "backward": (backward, r"calls backward\(\): return its value"),
    "checkpoint": (
        lambda p, b: checkpoint(mse, p, b, use_reentrant=False), r"torch\.utils\.checkpoint.*leave",
    ),
    "old checkpoint": (
        lambda p, b: checkpoint(lambda w: (b[0] @ w).square().mean(), p["w"], use_reentrant=True),
        r"use_reentrant=True.*setup_context",
    ),
    "old function": (
        lambda p, b: Old.apply(hidden(p, b)).mean(), r"torch\.autograd\.Function without setup",
    ),
    "cdist": (
        lambda p, b: torch.cdist(hidden(p, b), b[0] @ torch.ones(3, 4).to(b[0])).square().mean(),
        "no second derivative of _cdist_backward.*FirstOrderAdjoint",
    ),
    "bag": (
        lambda p, b: nn.functional.embedding_bag(places(b), p["w"]).square().sum(),
        "no second derivative of _embedding_bag_backward",
    ),
    "fused attention": (fused, r"no second derivative of .*attention.*SDPBackend\.MATH"),
    "data": (assigned, r"assigns to \.data"),
    "numpy": (lambda p, b: mse(p, b) * float(p["w"].detach().cpu().numpy().std()), r"numpy\(\)"),
    "inference": (inferred, r"inference_mode.*\.detach\(\)"),
    "sparse": (
        lambda p, b: nn.functional.embedding(places(b), p["w"], sparse=True).square().sum(),
        r"sparse=True.*leave sparse out",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("field", [odeopt.SGD, odeopt.GradientFlow])
@pytest.mark.parametrize("name", LOSSES)
def test_what_cannot_be_differentiated_is_refused_with_advice(name, field, device):
    loss, message = LOSSES[name]
    with pytest.raises(odeopt.CompatibilityError, match=message) as caught:
        gradient(loss, device, field)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "Torch says: " in str(caught.value)


def chosen(params, batch):
    value = mse(params, batch)
    return value if value > 0 else 2 * value


TASKS = {
    "if": (chosen, r"vmap.*torch\.where"),
    "item": (lambda p, b: mse(p, b) * mse(p, b).item(), r"vmap.*torch\.where"),
    "mask": (lambda p, b: hidden(p, b)[b[1] > 0].square().sum(), r"vmap.*boolean masks"),
    "function": (lambda p, b: New.apply(hidden(p, b)).mean(), "Function New .*generate_vmap_rule"),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_cannot_be_batched_over_tasks_is_refused_with_advice(name, device):
    loss, message = TASKS[name]
    gradient(loss, device)
    with pytest.raises(odeopt.CompatibilityError, match=message):
        gradient(loss, device, tasks=5)


@pytest.mark.parametrize("name", TASKS)
def test_few_tasks_are_not_batched_on_a_cpu(name):
    """They are solved one after the other, as they would be alone."""
    loss, _ = TASKS[name]
    alone = gradient(loss, "cpu")
    assert gradient(loss, "cpu", tasks=4).values[0] == alone.value


def test_the_outer_loss_is_looked_at_as_well(device):
    params, batch = problem(device)
    opt, grid = odeopt.ODEOptimizer(odeopt.SGD(mse)), odeopt.TimeGrid.from_lr(0.05, 3)
    found, expected = (
        opt.value_and_grad(outer)(params, batch, grid, batch).grads.params
        for outer in (retained, lambda params, batch: hidden(params, batch).square().mean())
    )
    assert relative_error(found, expected) < 1e-14  # by plain autograd it is as good as any
    one = tree.map_tensors(lambda leaf: leaf[None], batch)
    with pytest.raises(odeopt.CompatibilityError, match="calls retain_grad"):
        opt.value_and_grad(retained, tasks=True)(params, one, grid, one)


def test_a_refusal_in_the_backward_pass_of_solve_is_explained(device):
    params, batch = problem(device)
    start = tree.map_tensors(lambda x: x.requires_grad_(), params)
    opt = odeopt.ODEOptimizer(odeopt.SGD(LOSSES["cdist"][0]))
    sol = opt.solve(start, batch, odeopt.TimeGrid.from_lr(0.05, 3))
    with pytest.raises(odeopt.CompatibilityError, match="no second derivative of _cdist_backward"):
        mse(sol.params, batch).backward()


def test_a_first_derivative_is_enough_for_a_first_order_adjoint(device):
    loss = LOSSES["cdist"][0]
    res = gradient(loss, device, adjoint=odeopt.FirstOrderAdjoint())
    assert res.grads.params["w"].isfinite().all()


class Stop(BaseException):
    """What a debugger or a signal would raise."""


ERRORS = [
    ValueError("mine"), RuntimeError("mine"), KeyError("mine"), Stop("mine"), TypeError("mine"),
    torch.OutOfMemoryError("mine"), NotImplementedError("mine"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("later", [False, True])
def test_errors_of_the_users_own_pass_unchanged(error, later, device):
    calls = []

    def loss(params, batch):
        calls.append(1)
        if not later or len(calls) > 3:
            raise error
        return mse(params, batch)

    with pytest.raises(type(error)) as caught:
        gradient(loss, device)
    assert caught.value is error


@pytest.fixture
def attention(device):
    """Tokens that attend to one another, by name of the way in which they do."""
    mask = torch.ones(6, 6, dtype=torch.bool, device=device).tril()

    def loss(how):
        def value(params, batch):
            x = hidden(params, batch).reshape(1, 1, 6, 4)
            options = {"plain": {}, "causal": {"is_causal": True}, "masked": {"attn_mask": mask}}
            out = nn.functional.scaled_dot_product_attention(x, x.tanh(), x * 2, **options[how])
            return (out.mean(-1).reshape(-1) - batch[1]).square().mean()

        return value

    return loss


@pytest.mark.parametrize(("how", "mode", "compiler"), [
    ("plain", odeopt.ReverseMode, None), ("plain", odeopt.ForwardOverReverse, None),
    ("plain", odeopt.ReverseMode, "trace"), ("causal", odeopt.ReverseMode, None),
    ("masked", odeopt.ReverseMode, None),
])  # fmt: skip
def test_attention_is_differentiated_twice(attention, how, mode, compiler, device):
    """Its fused kernels have no second derivative."""
    params, batch = problem(device)
    loss, grid = attention(how), odeopt.TimeGrid.from_lr(0.5, 3)
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), params)
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(unroll(odeopt.Adam(loss), start, batch, grid.dt.to(device)), batch)
        expected = torch.autograd.grad(value, [start["w"]])
    opt = odeopt.ODEOptimizer(
        odeopt.Adam(loss), adjoint=odeopt.DiscreteAdjoint(mode()), compile=compiler
    )
    res = opt.value_and_grad(loss)(params, batch, grid, batch)
    assert relative_error(res.grads.params["w"], expected[0]) < 1e-11


SWITCHES = ("flash", "mem_efficient", "cudnn", "math")


def switches():
    return [getattr(backends, f"{name}_sdp_enabled")() for name in SWITCHES]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wanted", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_torchs_choice_of_a_kernel_for_attention_is_given_back(fails, wanted, device):
    seen = []

    def loss(params, batch):
        seen.append(switches())
        if fails:
            raise ValueError
        return mse(params, batch)

    with sdpa_kernel(wanted):
        before = switches()
        if fails:
            with pytest.raises(ValueError, match=r"^$"):
                gradient(loss, device)
        else:
            gradient(loss, device)
        assert switches() == before
    assert seen
    assert all(found == [False, False, False, True] for found in seen)


def test_blocks_of_several_threads_end_with_what_was_there_before():
    """They overlap so that the first to open is not the last to close."""
    before, state = switches(), SimpleNamespace(first=threading.Event(), second=threading.Event())
    seen = []

    def second():
        with PLAIN_ATTENTION:
            state.second.set()
            state.first.wait(10)
            seen.append(switches())

    thread = threading.Thread(target=second)
    with PLAIN_ATTENTION:
        thread.start()
        assert state.second.wait(10)
    state.first.set()
    thread.join()
    assert seen == [[False, False, False, True]]
    assert switches() == before


@pytest.mark.parametrize("kind", ["module", "layer"])
def test_attention_of_torchs_modules_is_differentiated_twice(kind, device):
    torch.manual_seed(0)
    heads = (
        nn.MultiheadAttention(4, 2, batch_first=True)
        if kind == "module"
        else nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
    ).to(device)

    def energy(model, batch):
        out = (
            model(batch, batch, batch, need_weights=False)[0] if kind == "module" else model(batch)
        )
        return (out[..., 0] - batch[..., 1].cos()).square().mean()

    batch = draw(device, 2, 5, 4)
    parts = odeopt.from_module(heads, energy)
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), parts.params)
    lrs = torch.full((3,), 0.1, device=device)
    with sdpa_kernel(SDPBackend.MATH):
        end = unroll(odeopt.SGD(parts.loss, momentum=0.9), start, batch, lrs)
        expected = torch.autograd.grad(parts.evaluate(end, batch), tree.tensors(start))
    optimizer = torch.optim.SGD(heads.parameters(), 0.1, momentum=0.9)
    with odeopt.RecordedLoop(heads, optimizer) as inner:
        for _ in range(3):
            inner.step(energy, batch)
    found = inner.value_and_grad(energy, batch).grads.params
    assert relative_error([found[name] for name in parts.params], list(expected)) < 1e-11
