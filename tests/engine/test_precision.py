"""Mixed precision, half precision and complex numbers are refused by name."""

import pytest
import torch

import odeopt


def loss(params, batch, hparams=None):
    x, y = batch
    weights = 1.0 if hparams is None else hparams["w"].real.to(x.dtype)
    return (weights * (x @ params - y) ** 2).mean()


@pytest.fixture
def batch(device):
    return torch.randn(4, 3, device=device), torch.randn(4, device=device)


GRID = odeopt.TimeGrid.from_lr(0.1, 3)
RULES = [odeopt.GradientFlow, odeopt.Adam]


def half(device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


@pytest.mark.parametrize("rule", RULES)
def test_autocast_around_a_solve_is_refused(device, batch, rule):
    opt = odeopt.ODEOptimizer(rule(loss))
    params = torch.zeros(3, device=device)
    message = f"autocast to torch.bfloat16 is active for {device.type}"
    with half(device):
        with pytest.raises(odeopt.InputError, match=message):
            opt.value_and_grad(loss)(params, batch, GRID, batch)
        with pytest.raises(odeopt.InputError, match=message):
            opt.solve(params, batch, GRID)
        with torch.autocast(device.type, enabled=False):
            opt.solve(params, batch, GRID)


def test_autocast_around_the_backward_pass_alone_is_refused(device, batch):
    params = torch.zeros(3, device=device, requires_grad=True)
    sol = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).solve(params, batch, GRID)
    value = loss(sol.params, batch)
    with half(device), pytest.raises(odeopt.InputError, match=r"autocast to torch\.bfloat16"):
        value.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_parameters_of_other_types_are_refused(device, batch, dtype):
    params = torch.zeros(3, device=device, dtype=dtype)
    with pytest.raises(odeopt.InputError, match=rf"has dtype {dtype}; expected torch\.float32"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).solve(params, batch, GRID)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hparams_are_refused(device, batch, dtype):
    opt, params = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)), torch.zeros(3, device=device)
    hparams = {"w": torch.ones(4, device=device, dtype=dtype)}
    with pytest.raises(odeopt.InputError, match=f"differentiable tensor of dtype {dtype}"):
        opt.value_and_grad(loss)(params, batch, GRID, batch, hparams)
    hparams["w"].requires_grad_()
    with pytest.raises(odeopt.InputError, match=f"differentiable tensor of dtype {dtype}"):
        opt.solve(params, batch, GRID, hparams)


def test_complex_hparams_may_be_used_but_not_learned(device, batch):
    opt, params = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)), torch.zeros(3, device=device)
    hparams = {"w": torch.ones(4, device=device, dtype=torch.complex128)}
    opt.solve(params, batch, GRID, hparams)
    hparams["w"].requires_grad_()
    with pytest.raises(odeopt.CapturedTensorError, match=r"torch\.complex128 requires grad"):
        opt.solve(params, batch, GRID, hparams)
