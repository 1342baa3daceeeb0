"""What is tried before anything has been solved, and what is looked at for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from odeopt import GradientFlow, TimeGrid
from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.checkpoint.uniform import Every
from odeopt.engine.choices import Choices
from odeopt.engine.run import make_kernels
from odeopt.engine.safety import Safety
from odeopt.engine.stats import Stats
from odeopt.gradient.value_and_grad import Beginning
from odeopt.solver.runge_kutta import RK4
from odeopt.testing.problems import Quadratic
from odeopt.tolerance.guess import HORIZONS, LENGTHS, SHARE, SPREAD, first_setting, stabilized
from odeopt.tolerance.pilot import AT_ONCE, WORTH_ASKING, Pilot, pilot
from odeopt.tolerance.setting import Setting

TOLERANCES = [1e-1, 1e-2, 1e-3, 1e-4]


def look(loss, params, batch, horizon, tasks=False, real_spectrum=True):
    field, stats = GradientFlow(loss), Stats()
    problem = Beginning(field, params, None, None).problem(
        batch, TimeGrid.uniform(horizon, 1), tasks
    )
    choices = Choices(field, RK4(), DiscreteAdjoint(), Every(1), Safety(), None)
    kernels = make_kernels(choices, problem, stats)
    return pilot(kernels, problem, stats, real_spectrum), stats


def curved(params, batch):
    return torch.cosh(params - batch).sum()


@given(seed=st.integers(0, 10**6), horizon=st.floats(WORTH_ASKING * 1.3, 100.0))
def test_a_quadratic_loss_is_seen_to_have_an_affine_velocity(seed, horizon):
    known = Quadratic.from_spectrum([0.01, 0.02, 0.05, 1.0], seed)
    start = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    found, stats = look(known.loss, start, known.center, horizon)
    assume(found.stiffness >= AT_ONCE)  # of few starts the first product shows next to nothing
    assert found.affine
    assert 0.99 * horizon < found.stiffness <= horizon * (1 + 1e-6)
    assert stats.gradient_evaluations <= 8


@example(seed=54, horizon=16.0)  # where power iterations stand still at half the radius
@given(seed=st.integers(0, 10**6), horizon=st.floats(WORTH_ASKING * 1.3, 100.0))
def test_where_it_is_asked_a_close_spectrum_is_seen_too(seed, horizon):
    known = Quadratic.from_spectrum([0.1, 0.2, 0.5, 1.0], seed)
    start = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    found, stats = look(known.loss, start, known.center, horizon)
    assert found.affine
    assert 0.99 * horizon < found.stiffness <= horizon * (1 + 1e-6)
    assert stats.gradient_evaluations <= 8


def test_another_loss_is_not(device):
    start = torch.linspace(-1, 1, 5, device=device)
    found, stats = look(curved, start, torch.zeros_like(start), 20.0)
    assert found.stiffness > WORTH_ASKING
    assert not found.affine
    assert stats.gradient_evaluations < 15


def test_one_task_of_another_kind_is_enough(device):
    def mixed(params, batch):
        return (0.5 * params**2 + batch * params**4).sum()

    start = torch.ones(3, device=device)
    straight = torch.zeros(2, 1, device=device)
    bent = torch.tensor([[0.0], [0.1]], device=device)
    assert look(mixed, start, straight, 20.0, tasks=True)[0].affine
    assert not look(mixed, start, bent, 20.0, tasks=True)[0].affine


def test_it_is_not_asked_where_the_spectrum_may_be_complex():
    known = Quadratic.from_spectrum([0.1, 0.2, 0.5, 1.0], 0)
    start = torch.ones(4)
    found, stats = look(known.loss, start, known.center, 40.0, real_spectrum=False)
    asked, more = look(known.loss, start, known.center, 40.0)
    assert asked.affine
    assert not found.affine
    assert stats.gradient_evaluations <= more.gradient_evaluations - 2


def test_of_a_short_horizon_little_is_asked():
    start = torch.linspace(-1, 1, 5)
    found, stats = look(curved, start, torch.zeros(5), 0.1)
    assert found.stiffness < AT_ONCE
    assert stats.gradient_evaluations == 2


@pytest.mark.parametrize("tol", TOLERANCES)
@pytest.mark.parametrize("affine", [False, True])
def test_longer_horizons_and_tighter_tolerances_are_not_given_less_of_a_method(tol, affine):
    settings = [
        first_setting(Pilot(0.5 * 1.05**k, affine, real_spectrum=False), tol) for k in range(150)
    ]
    for before, after in itertools.pairwise(settings):
        if before.method == after.method:
            assert after.fineness >= before.fineness
    for now in (3.0, 30.0, 300.0):
        own, tighter = (
            first_setting(Pilot(now, affine, real_spectrum=False), share * tol)
            for share in (1.0, 0.5)
        )
        if own.method == tighter.method:
            assert tighter.fineness >= own.fineness


@pytest.mark.parametrize("place", range(len(HORIZONS)))
def test_lengths_are_those_given_at_their_horizons(place):
    horizon, length = HORIZONS[place], LENGTHS["rk4"][place]
    found = first_setting(Pilot(horizon, real_spectrum=False), 1e-3)
    assert found.steps == pytest.approx(max(horizon / min(length, 1.59), 2.0), abs=1.0)


@pytest.mark.parametrize("tol", TOLERANCES)
def test_fixed_steps_are_kept_for_longer_where_they_stay_stable(tol):
    stiff = 110.0
    assert first_setting(Pilot(stiff), tol).method == "stabilized-rk"
    assert first_setting(Pilot(stiff, True), tol).method != "stabilized-rk"
    assert first_setting(Pilot(10 * stiff, True), tol).method == "stabilized-rk"
    complex_spectrum = Pilot(10 * stiff, real_spectrum=False)
    assert first_setting(complex_spectrum, tol).method != "stabilized-rk"


@pytest.mark.parametrize("tol", TOLERANCES)
def test_the_stabilised_solver_aims_at_less_of_a_loose_tolerance(tol):
    aim = 1 / stabilized(Pilot(100.0), tol).fineness ** 0.6
    assert aim * (1 + SPREAD * aim) == pytest.approx(SHARE * tol)
    assert stabilized(Pilot(1000.0, True), tol).fineness > 1 / tol


def test_one_step_of_rk4_may_do_where_few_digits_are_asked_for():
    short = Pilot(0.5)
    assert first_setting(short, 0.01) == Setting("rk4", 1.0)
    assert first_setting(short, 0.001) == Setting("rk4", 2.0)
    assert first_setting(short, 0.1) == Setting("euler", 2.0)
