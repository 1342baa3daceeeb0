"""How `from_tolerance` goes from one setting to the next."""

from __future__ import annotations

import math

import pytest

from odeopt.result import ErrorEstimate
from odeopt.stats import Stats
from odeopt.tolerance.course import Course
from odeopt.tolerance.leftover import bound_of, leading

STIFFNESS = 9.0


def error(size, gap, order=4):
    return ErrorEstimate(size, size, 0.0, gap, order, (), Stats())


def test_fixed_steps_begin_with_half_as_many_again_beside_them():
    course = Course(STIFFNESS, 1e-3, real_spectrum=True)
    assert course.setting.steps == math.ceil(STIFFNESS / 1.8)
    assert course.finer.steps == math.ceil(1.5 * course.setting.steps)


def test_a_miss_is_followed_by_one_solve_beside_the_one_that_has_been_made():
    course = Course(STIFFNESS, 1e-3, real_spectrum=True)
    made = course.finer
    assert not course.accept(error(2e-3, gap=0.03))
    assert course.setting == made
    # the error of RK4 is to fall to 0.85e-3, with room for the terms that the estimate leaves out
    wanted = made.steps * (2e-3 * (1 + 15 * 2e-3) / 0.85e-3) ** 0.25
    assert course.finer.steps == max(math.ceil(wanted), math.ceil(1.5 * made.steps))


def test_an_unclear_miss_is_followed_by_half_as_many_steps_again():
    course = Course(STIFFNESS, 1e-3, real_spectrum=True)
    made = course.finer
    assert not course.accept(error(0.015, gap=0.2))
    assert (course.setting, course.finer) == (made, made.partner)


def test_the_stabilised_solver_takes_over_after_four_settings_that_were_unstable():
    course = Course(STIFFNESS, 1e-3, real_spectrum=True)
    for _ in range(4):
        assert course.setting.method == "rk4"
        course.fail()
    assert course.setting.method == "stabilized-rk"
    assert "unstable" in course.why


def test_it_never_takes_over_where_the_spectrum_may_be_complex():
    course = Course(STIFFNESS, 1e-3, real_spectrum=False)
    for _ in range(10):
        course.fail()
    assert course.setting.method == "rk4"


@pytest.mark.parametrize("spread", [0.0, 3.0, 200.0])
def test_an_error_is_found_from_its_bound(spread):
    found = leading(1e-2, spread)
    assert found * (1 + spread * found) == pytest.approx(1e-2)


def test_a_bound_leaves_room_by_the_gap():
    assert bound_of(error(1e-2, gap=0.1)) == pytest.approx(1e-2 * 2.5)
    assert bound_of(error(1e-2, gap=0.1, order=1)) == pytest.approx(1e-2 * 1.5)
    assert bound_of(error(math.nan, gap=0.1)) == math.inf
