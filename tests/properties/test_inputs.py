"""Inputs of a wrong kind, shape or dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.safety import (
    GRID,
    both,
    ones,
    quadratic,
    total,
)

import odeopt
from odeopt import (
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


@both
@pytest.mark.parametrize("dtype", [
    torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
])  # fmt: skip
def test_params_of_a_dtype_that_cannot_be_solved_are_refused(device, run, dtype):
    params = torch.ones(2, dtype=dtype, device=device)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=f"params.* has dtype {dtype}; expected torch.floa"):
        run(opt, total, params, ones(device), GRID)


@both
@pytest.mark.parametrize(("params", "message"), [
    ({}, "params holds no tensor"), ((), "params holds no tensor"), (None, "params.* is a NoneTy"),
    (1.0, "params.* is a float"), ({"w": np.ones(2)}, r"params\['w'\] is a ndarray"),
    ([torch.ones(2), 3], r"params\[1\] is a int"),
])  # fmt: skip
def test_params_that_are_no_tensors_are_refused(device, run, params, message):
    with pytest.raises(odeopt.InputError, match=message):
        run(ODEOptimizer(GradientFlow(quadratic)), total, params, ones(device), GRID)


@both
@pytest.mark.parametrize("other", [
    torch.ones(2, dtype=torch.float32), torch.ones(2, device="meta"),
], ids=["dtype", "device"])  # fmt: skip
def test_params_of_mixed_dtypes_or_devices_are_refused(device, run, other):
    params = {"a": torch.ones(2), "b": other}
    with pytest.raises(odeopt.InputError, match=r"params\['b'\] is .*use one dtype and one device"):
        run(ODEOptimizer(GradientFlow(quadratic)), total, params, ones(device), GRID)


@both
@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.ones(2, device="meta"), "on the meta device"),
    (lambda: torch.eye(2).to_sparse(), r"of layout torch\.sparse_coo"),
])  # fmt: skip
def test_params_without_values_in_their_places_are_refused(device, run, make, message):
    with pytest.raises(odeopt.InputError, match=rf"params.* is {message}; expected a dense tensor"):
        run(ODEOptimizer(GradientFlow(quadratic)), total, make(), ones(device), GRID)


def test_a_module_on_the_meta_device_is_refused():
    model = torch.nn.Linear(2, 1, device="meta")
    with pytest.raises(odeopt.InputError, match=r"weight.* on the meta device.*to_empty"):
        odeopt.RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1))


@both
def test_a_numpy_batch_is_refused(device, run):
    batch = {"x": [np.ones(2)]}
    with pytest.raises(odeopt.InputError, match=r"batch\['x'\]\[0\] is a numpy .*from_numpy"):
        run(ODEOptimizer(GradientFlow(quadratic)), total, ones(device), batch, GRID)


def test_a_numpy_outer_batch_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total)
    with pytest.raises(odeopt.InputError, match=r"outer_batch.* is a numpy array"):
        call(ones(device), ones(device), GRID, np.ones(2))


@both
@pytest.mark.parametrize("grid", [0.1, 10, None, torch.linspace(0, 1, 5), TimeGrid])
def test_a_grid_of_another_kind_is_refused(device, run, grid):
    with pytest.raises(odeopt.InputError, match=r"(?s)grid is .*; expected a TimeGrid, e.g."):
        run(ODEOptimizer(GradientFlow(quadratic)), total, ones(device), ones(device), grid)


@both
@pytest.mark.parametrize("state", [torch.ones(3), {"w": torch.ones(2)}, [], torch.ones(2, 2, 2)])
def test_a_warm_start_of_another_shape_is_refused(device, run, state):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"(?s)state has the structure .*expected"):
        run(opt, total, ones(device), ones(device), GRID, state=state)


@both
@pytest.mark.parametrize("returned", [
    lambda y: {"w": y}, lambda y: y.sum(), lambda y: torch.stack([y, y]), lambda y: y[:1],
    lambda y: 1.0, lambda y: None, lambda y: [y],
], ids=["structure", "scalar", "matrix", "short", "number", "None", "list"])  # fmt: skip
def test_a_velocity_of_another_structure_or_shape_is_refused(device, run, returned):
    opt = ODEOptimizer(lambda t, y, c, hp, b: returned(y))
    with pytest.raises(odeopt.InputError, match=r"(?s)the velocity has the structure.*expected"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128])
def test_a_velocity_of_another_dtype_is_refused(device, run, dtype):
    opt = ODEOptimizer(lambda t, y, c, hp, b: -y.to(dtype))
    with pytest.raises(odeopt.InputError, match="the velocity"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("returned", [
    lambda p: p**2, lambda p: 1.0, lambda p: None, lambda p: (p.sum(), 1),
    lambda p: p.sum().to(torch.int64), lambda p: p.sum() * 1j,
], ids=["vector", "number", "None", "pair", "integer", "complex"])  # fmt: skip
def test_a_loss_that_is_no_real_scalar_is_refused(device, run, returned):
    opt = ODEOptimizer(GradientFlow(lambda p, b: returned(p)))
    with pytest.raises(
        odeopt.InputError, match=r"(?s)loss returned .*floating-point scalar tensor"
    ):
        run(opt, total, ones(device), ones(device), GRID)


@pytest.mark.parametrize("returned", [lambda p: p**2, lambda p: 1.0, lambda p: (p.sum(), 1)])
def test_an_outer_loss_that_is_no_scalar_is_refused(device, returned):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: returned(p))
    with pytest.raises(odeopt.InputError, match=r"(?s)outer_loss returned .*scalar tensor"):
        call(ones(device), ones(device), GRID, ones(device))


def test_an_outer_loss_without_aux_is_refused_where_aux_is_promised(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, has_aux=True)
    with pytest.raises(
        odeopt.InputError, match=r"(?s)has_aux=True, but outer_loss .*expected a pair"
    ):
        call(ones(device), ones(device), GRID, ones(device))


@both
@pytest.mark.parametrize(("loss", "with_hparams", "names"), [
    (lambda p: p.sum(), False, r"\(params, batch\)"),
    (lambda p, b, hp: p.sum(), False, r"\(params, batch\)"),
    (lambda p, b: p.sum(), True, r"\(params, batch, hparams\)"),
    (lambda: 1.0, True, r"\(params, batch, hparams\)"),
])  # fmt: skip
def test_a_loss_with_a_wrong_number_of_arguments_is_refused(device, run, loss, with_hparams, names):
    hparams = ones(device) if with_hparams else None
    opt = ODEOptimizer(GradientFlow(loss))
    with pytest.raises(
        odeopt.InputError, match=f"loss cannot be called with {names}.*exactly when"
    ):
        run(opt, total, ones(device), ones(device), GRID, hparams=hparams)


def test_an_outer_loss_with_a_wrong_number_of_arguments_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p: p.sum())
    with pytest.raises(
        odeopt.InputError, match=r"outer_loss cannot be called with \(params, batch"
    ):
        call(ones(device), ones(device), GRID, ones(device))


def test_an_outer_loss_that_cannot_take_observed_states_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total)
    grid = TimeGrid.from_lr(0.1, 3, observe=[1])
    with pytest.raises(odeopt.InputError, match=r"outer_loss cannot .*keywords \['observed'\]"):
        call(ones(device), ones(device), grid, ones(device))


@both
def test_a_type_error_inside_the_loss_is_left_as_it_is(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: p + "text"))
    with pytest.raises(TypeError, match=r"unsupported operand|must be Tensor") as caught:
        run(opt, total, ones(device), ones(device), GRID)
    assert not isinstance(caught.value, odeopt.OdeoptError)


def test_a_module_in_place_of_parameters_is_told_what_to_do(device):
    opt, x = ODEOptimizer(GradientFlow(quadratic)), ones(device)
    for params in (torch.nn.Linear(2, 1), torch.nn.Linear(2, 1).parameters()):
        with pytest.raises(odeopt.InputError, match=r"expected a torch.Tensor.*from_module\("):
            opt.solve(params, x, GRID)


@pytest.mark.parametrize("kind", [torch.optim.SGD, lambda p: torch.optim.SGD(p, 0.1)])
def test_an_optimizer_of_torch_in_place_of_an_inner_optimizer_is_told_where_it_goes(kind):
    made = kind if isinstance(kind, type) else kind([torch.ones(2)])
    with pytest.raises(odeopt.InputError, match=r"inner optimiser is .*SGD.*RecordedLoop"):
        ODEOptimizer(made)
