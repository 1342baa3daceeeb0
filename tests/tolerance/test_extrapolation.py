"""Two solves put together, and what is said of the error that is left."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tolerances import flow, on_smooth

from odeopt import RK4, GradientFlow, HeavyBall, ODEOptimizer, TimeGrid, from_tolerance
from odeopt.engine.stats import Stats
from odeopt.gradient.error_estimate import scaled
from odeopt.gradient.result import ErrorEstimate, Grads, Result
from odeopt.testing.problems import relative_error, smooth_problem
from odeopt.tolerance.extrapolation import LEFT, NOISE, extrapolate, left, shrunk
from odeopt.tolerance.setting import FIXED, STABILIZED

GRID = TimeGrid.uniform(3.0, 10)


def result(seed, error, tasks=None):
    """What is exact, with an error of a size in one direction."""
    random = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(seed + 1)

    def draw(*shape):
        exact = torch.randn(shape, generator=random)
        return exact + error * torch.randn(shape, generator=other)

    lead = () if tasks is None else (tasks,)
    grads = Grads(
        {"u": draw(2, 3), "v": [draw(2)]},
        {"w": draw(), "count": None},
        draw(*lead, 5),
        (draw(*lead, 4), None),
    )
    values = None if tasks is None else draw(tasks)
    status = torch.zeros(lead, dtype=torch.int64)
    return Result(draw(), values, grads, status, Stats(), aux="kept")


def tensors(found):
    parts = (found.value, found.values, dataclasses.astuple(found.grads))
    leaves = torch.utils._pytree.tree_leaves(parts)
    return [leaf for leaf in leaves if leaf is not None]


@given(
    seed=st.integers(0, 10**6),
    error=st.floats(1e-6, 1.0),
    ahead=st.floats(0.05, 20.0),
    tasks=st.sampled_from([None, 3]),
)
def test_an_error_with_one_term_is_taken_away_from_everything(seed, error, ahead, tasks):
    exact = result(seed, 0.0, tasks)
    fine, coarse = (result(seed, share * error, tasks) for share in (1.0, 1.0 + ahead))
    found = extrapolate(fine, coarse, ahead)
    assert len(tensors(found)) == len(tensors(exact)) == (6 if tasks is None else 7)
    for own, true in zip(tensors(found), tensors(exact), strict=True):
        torch.testing.assert_close(own, true, rtol=0, atol=1e-13 * (1 + 1 / ahead))
    assert found.grads.hparams["count"] is None
    assert found.aux == "kept"


def test_every_method_that_is_tried_has_a_share():
    assert set(LEFT) == {*FIXED, STABILIZED}
    assert all(0 < share < 1 for share in LEFT.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_in_the_rounding_errors_says_nothing(dtype):
    least = NOISE * torch.finfo(dtype).eps
    assert left("rk4", 2 * least, dtype) == LEFT["rk4"]
    assert left("rk4", 0.5 * least, dtype) == 1


def test_what_is_left_is_said_and_doubted():
    error = ErrorEstimate(0.1, 0.2, 0.4, 0.03, 2, ("few steps",), Stats())
    found = shrunk(error, 0.5)
    assert (found.value, found.params, found.hparams) == (0.05, 0.1, 0.2)
    assert found.gap == 0.03
    assert found.doubts[0] == "few steps"
    assert "extrapolated" in found.doubts[1]
    assert vars(dataclasses.replace(found, doubts=error.doubts)) == vars(scaled(error, 0.5))


def exact_gradient(device=None, tasks=None):
    opt = ODEOptimizer(flow(device), RK4())
    return on_smooth(opt, TimeGrid.uniform(3.0, 200), device, tasks, hparams=True)


def first_call(tol, device, tasks=None):
    return on_smooth(from_tolerance(flow(device), tol), GRID, device, tasks, hparams=True)


TOLERANCES = [0.1 * 0.6**k for k in range(9)]


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "tolerances"), [(None, TOLERANCES), (3, TOLERANCES[::4])])
def test_a_call_that_ends_with_an_extrapolated_gradient_is_within_the_tolerance(
    device, tasks, tolerances
):
    exact = exact_gradient(device, tasks).grads
    ended = 0
    for tol in tolerances:
        found = first_call(tol, device, tasks)
        assert relative_error(found.grads.params, exact.params) <= tol
        assert relative_error(found.grads.hparams, exact.hparams) <= tol
        assert found.error.params <= tol
        extrapolated = any("extrapolated" in doubt for doubt in found.error.doubts)
        assert not (extrapolated and found.error.trusted)
        ended += extrapolated
    assert ended > 0


def test_later_calls_go_on_to_a_setting_that_does_by_itself(device):
    for tol in TOLERANCES[::2]:
        opt = from_tolerance(flow(device), tol)
        calls = [on_smooth(opt, GRID, device, hparams=True) for _ in range(6)]
        assert calls[-1].error.params <= tol
        assert not any("extrapolated" in doubt for doubt in calls[-1].error.doubts)


def test_a_solution_that_oscillates_is_not_extrapolated(device):
    problem = smooth_problem(device)
    for tol in TOLERANCES[::3]:
        opt = from_tolerance(HeavyBall(problem.loss, 0.5), tol)
        found = on_smooth(opt, GRID, device)
        assert not any("extrapolated" in doubt for doubt in found.error.doubts)


def test_neither_is_a_velocity_that_is_affine(device):
    curvature = torch.tensor([1.0, 3.0, 10.0], device=device)
    for tol in TOLERANCES[::3]:
        opt = from_tolerance(GradientFlow(lambda u, batch: (curvature * u * u).sum() / 2), tol)
        path = opt.value_and_grad(lambda u, batch: u.sum())
        start = torch.ones(3, device=device)
        found = path(start, None, TimeGrid.uniform(3.0, 5), None)
        assert not any("extrapolated" in doubt for doubt in found.error.doubts)
