"""COMLN against autograd through the flow of the last layer's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odeopt_plugins.comln import COMLN
from torch.nn.functional import cross_entropy

import odeopt

M, F, N = 4, 3, 3
TIGHT = odeopt.Adaptive(1e-8, 1e-10, first_step=1e-2, max_steps=2000)
DENSE = {"weight": "head.weight", "bias": "head.bias"}
few_examples = settings(max_examples=4)


def features(params, batch):
    return torch.tanh(batch[0] @ params["body"])


def squared(outputs, batch):
    return 0.5 * (outputs - batch[1]).square().sum(1).mean()


def entropy(outputs, batch):
    return cross_entropy(outputs, batch[1])


def draw(seed, tasks, device, bias=True, labels=False):
    """(params, (train, validation))."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(device)

    def half(m):
        targets = torch.randint(N, (tasks, m), generator=random).to(device)
        return normal(tasks, m, 2), (targets if labels else normal(tasks, m, N))

    params = {"body": normal(2, F), "head.weight": normal(N, F)}
    params |= {"head.bias": normal(N)} if bias else {}
    return params, (half(M), half(M + 1))


def inputs(params, batch):
    """Features with a column of ones if there is a bias, and the last layer with its bias."""
    phi = features(params, batch)
    if "head.bias" not in params:
        return phi, params["head.weight"]
    weights = torch.cat([params["head.weight"], params["head.bias"][:, None]], dim=1)
    return torch.cat([phi, torch.ones_like(phi[:, :1])], dim=1), weights


def by_matrix_exponential(params, train, horizon):
    """The last layer of the flow of the squared loss, which is affine in the weights."""
    phi, weights = inputs(params, train)
    d = phi.shape[1]
    rate = torch.cat([-phi.T @ phi, phi.T @ train[1]], dim=1) / M
    generator = torch.cat([rate, torch.zeros(N, d + N, device=phi.device)])
    start = torch.cat([weights.T, torch.eye(N, device=phi.device)])
    return (torch.linalg.matrix_exp(horizon * generator) @ start)[:d].T


def by_runge_kutta(params, train, horizon, steps=60):
    """The same for any loss, by a fine grid."""
    phi, weights = inputs(params, train)
    velocity = torch.func.grad(lambda w: -entropy(phi @ w.T, train))
    h = horizon / steps
    for _ in range(steps):
        k1 = velocity(weights)
        k2 = velocity(weights + h / 2 * k1)
        k3 = velocity(weights + h / 2 * k2)
        k4 = velocity(weights + h * k3)
        weights = weights + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return weights


def objective(flow, outer):
    def end(train, validation, params, hparams):
        weights = flow(params, train, hparams["log_horizon"].exp())
        return outer(inputs(params, validation)[0] @ weights.T, validation)

    return end


def assert_exact(
    few, flow, loss, params, batch, names, horizon, outer=None, solver=TIGHT, tolerance=1e-6
):
    method = COMLN(features, loss, outer, **names, initial_horizon=horizon, solver=solver)
    hparams = method.init_hparams(params)
    assert abs(float(hparams["log_horizon"].exp()) - horizon) < 1e-12
    values, grads = few.autograd(objective(flow, outer or loss), batch, params, hparams)
    res = method(params, batch, hparams)
    few.assert_equal(res, values, grads[:1], tolerance)
    slope, expected = res.grads.hparams["log_horizon"], grads[1]["log_horizon"]
    assert abs(float(slope - expected)) <= tolerance * max(1.0, abs(float(expected)))
    assert few.relative(method.evaluate(params, batch, hparams), values) <= tolerance
    adapted = method.adapt(params, batch[0], hparams)
    for task in range(len(values)):
        weights = flow(params, few.at(batch[0], task), horizon)
        mine = adapted["head.weight"][task]
        if names["bias"]:
            mine = torch.cat([mine, adapted["head.bias"][task][:, None]], dim=1)
        assert few.relative(mine, weights) <= tolerance
        assert torch.equal(adapted["body"][task], params["body"])


@few_examples
@given(
    seed=st.integers(0, 10_000), tasks=st.integers(1, 3), bias=st.booleans(),
    horizon=st.floats(0.05, 2),
)  # fmt: skip
def test_squared_loss_equals_the_matrix_exponential(seed, tasks, bias, horizon, few, device):
    params, batch = draw(seed, tasks, device, bias)
    names = DENSE if bias else DENSE | {"bias": None}
    assert_exact(few, by_matrix_exponential, squared, params, batch, names, horizon)


@pytest.mark.slow
@few_examples
@given(
    seed=st.integers(0, 10_000), tasks=st.integers(1, 2), bias=st.booleans(),
    horizon=st.floats(0.05, 2),
)  # fmt: skip
def test_cross_entropy_equals_autograd_through_a_fine_grid(seed, tasks, bias, horizon, few, device):
    params, batch = draw(seed, tasks, device, bias, labels=True)
    names = DENSE if bias else DENSE | {"bias": None}
    assert_exact(few, by_runge_kutta, entropy, params, batch, names, horizon)


@pytest.mark.slow
def test_another_outer_loss_and_the_default_tolerances(few, device):
    params, batch = draw(0, 2, device)
    outer = lambda outputs, batch: torch.cosh(outputs - batch[1]).mean()  # noqa: E731
    assert_exact(few, by_matrix_exponential, squared, params, batch, DENSE, 1.3, outer)
    assert_exact(few, by_matrix_exponential, squared, params, batch, DENSE, 1.3, outer, None, 1e-3)


def test_a_tight_solver_chooses_its_first_step_from_a_state_of_zeros(few, device):
    params, batch = draw(0, 2, device)
    solver = odeopt.Adaptive(1e-9, 1e-11, max_steps=2000)
    assert_exact(few, by_matrix_exponential, squared, params, batch, DENSE, 0.5, solver=solver)


def test_memory_does_not_depend_on_the_horizon(device):
    params, batch = draw(0, 2, device)
    for horizon in (0.1, 20.0):
        method = COMLN(features, squared, initial_horizon=horizon)
        stats = method(params, batch, method.init_hparams(params)).stats
        assert stats.stored_states == stats.hvps == 0


def spoiled(batch, task):
    """The batch with NaN among one task's targets."""
    targets = batch[1].clone()
    targets[task, 0] = torch.nan
    return batch[0], targets


def test_a_task_that_diverges_is_left_out(few, device):
    params, (train, validation) = draw(0, 4, device)
    skipping, raising = (
        COMLN(
            features,
            squared,
            solver=odeopt.Adaptive(1e-5, 1e-7, first_step=1e-2, max_steps=300),
            **kw,
        )
        for kw in ({"on_failure": "skip"}, {})
    )
    hparams, rest = raising.init_hparams(params), [0, 1, 3]
    found = skipping(params, (spoiled(train, 2), validation), hparams)
    expected = raising(params, few.at((train, validation), rest), hparams)
    assert (found.status != odeopt.Status.OK).tolist() == [False, False, True, False]
    assert few.relative(found.values[rest], expected.values) <= 1e-12
    assert few.relative(found.value, expected.value) <= 1e-12
    assert few.relative(found.grads.params, expected.grads.params) <= 1e-12
    with pytest.raises(odeopt.DivergenceError, match="task"):
        raising(params, (spoiled(train, 2), validation), hparams)


def test_a_validation_loss_that_is_not_finite_is_refused(device):
    params, (train, validation) = draw(0, 3, device)
    method = COMLN(features, squared)
    with pytest.raises(odeopt.DivergenceError):
        method(params, (train, spoiled(validation, 1)), method.init_hparams(params))


def test_another_number_of_validation_tasks_is_refused(few, device):
    params, (train, validation) = draw(0, 3, device)
    method = COMLN(features, squared)
    with pytest.raises(odeopt.InputError):
        method(params, (train, few.at(validation, [0, 1])), method.init_hparams(params))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"initial_horizon": 0.0}, "positive"),
        ({"horizon": odeopt.TaskHorizon()}, "leave horizon out"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(odeopt.InputError, match=match):
        COMLN(features, squared, **settings)


def test_wrong_inputs_are_refused(device):
    params, batch = draw(0, 2, device)
    method = COMLN(features, squared)
    with pytest.raises(odeopt.InputError, match="init_hparams"):
        method(params, batch)
    with pytest.raises(odeopt.InputError, match="no hparams"):
        method.init_hparams(params, {"penalty": torch.zeros(())})
    hparams = method.init_hparams(params)
    with pytest.raises(odeopt.InputError, match="last layer"):
        COMLN(features, squared, weight="nothing")(params, batch, hparams)
    wide = params | {"head.weight": torch.zeros(N, F + 1, device=device)}
    with pytest.raises(odeopt.InputError, match="features"):
        method(wide, batch, hparams)
