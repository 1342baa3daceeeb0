"""How `from_tolerance` goes from one setting to the next."""

from __future__ import annotations

import math

import pytest

from odeopt.engine.stats import Stats
from odeopt.gradient.result import ErrorEstimate
from odeopt.tolerance.course import CLOSE_AIM, LATER_AIM, PATIENCE, Course
from odeopt.tolerance.guess import fixed_steps, stabilized
from odeopt.tolerance.pair import (
    FURTHER,
    FURTHER_IF_STABLE,
    LARGEST_JUMP,
    WIDEST_GAP,
    WIDEST_REGULAR_GAP,
)
from odeopt.tolerance.pilot import Pilot
from odeopt.tolerance.setting import MOST_STEPS, PAIRS

MILD, STIFF = Pilot(9.0), Pilot(100.0)
MILD_COMPLEX = Pilot(9.0, real_spectrum=False)


def error(size, gap, order=4):
    return ErrorEstimate(size, size, 0.0, gap, order, (), Stats())


def judged(course, found, change=0.0, costs=(0, 0), left=1.0):
    return course.accept(found, change, costs, left)


def test_a_pair_begins_with_more_steps_beside_the_first_guess():
    course = Course(MILD, 1e-3)
    assert course.setting == fixed_steps(MILD, 1e-3)
    assert course.finer.steps == course.setting.steps + 1
    course = Course(MILD, 1e-2)
    assert course.setting.method == "modified-euler"
    assert course.finer.steps == round(PAIRS["modified-euler"] * course.setting.steps)


@pytest.mark.parametrize("size", [6e-3, 24e-3])
def test_a_miss_is_followed_by_one_solve_beside_the_finer_one(size):
    course = Course(MILD, 1e-3)
    made = course.finer
    assert not judged(course, error(size, gap=0.03))
    assert course.setting == made
    wanted = made.steps * (size / (CLOSE_AIM * 1e-3)) ** 0.25
    assert course.finer.steps == math.ceil(wanted)


def test_a_near_miss_is_followed_by_one_solve_beside_the_coarser_one():
    course = Course(Pilot(30.0, real_spectrum=False), 1e-2)
    coarse, made = course.setting, course.finer
    assert not judged(course, error(1.02e-2, gap=1e-3, order=2))
    assert course.setting == coarse
    assert made.steps < course.finer.steps < made.partner.steps


def test_a_call_may_end_with_both_solves_and_the_next_one_goes_on():
    course = Course(MILD, 1e-3)
    made = course.finer
    near = error(1.8e-3, gap=0.03)
    assert course.extrapolates(near, left=0.5)
    assert judged(course, near, left=0.5)
    assert course.working is None
    assert course.due
    assert course.usable == course.finer
    assert course.finer.steps == math.ceil(made.steps * (1.8 / LATER_AIM) ** 0.25)
    own = error(0.6e-3, gap=0.01)
    assert not course.extrapolates(own, left=0.5)
    assert judged(course, own, left=0.5, change=1e-3)
    assert course.working == course.usable == course.finer


def test_within_a_call_what_extrapolation_leaves_is_aimed_at():
    course = Course(MILD, 1e-3)
    made = course.finer
    assert not judged(course, error(24e-3, gap=0.03), left=0.8)
    assert course.finer.steps == math.ceil(made.steps * (24 / (CLOSE_AIM / 0.8)) ** 0.25)


@pytest.mark.parametrize(
    ("pilot", "gap"),
    [(MILD_COMPLEX, 1e-4), (Pilot(15.0, affine=True), 0.03), (MILD, 1.01 * WIDEST_GAP)],
)
def test_without_a_leading_term_a_call_goes_on(pilot, gap):
    course = Course(pilot, 1e-3)
    near = error(1.8e-3, gap=gap)
    assert not course.extrapolates(near, left=0.5)
    assert not judged(course, near, left=0.5)


@pytest.mark.parametrize(
    ("pilot", "order", "expected"), [(MILD, 1, False), (MILD, 2, True), (STIFF, 2, False)]
)
def test_large_changes_are_regular_for_fixed_steps_of_higher_order(pilot, order, expected):
    course = Course(pilot, 0.1)
    large = error(0.15, gap=1.5 * WIDEST_REGULAR_GAP, order=order)
    assert course.extrapolates(large, left=0.5) is expected


@pytest.mark.parametrize(("gap", "most"), [(0.9, 9), (1.1, LARGEST_JUMP)])
def test_after_an_irregular_change_a_few_more_steps_are_tried(gap, most):
    course = Course(MILD, 0.05)
    made, size = course.finer, 9 * CLOSE_AIM * 0.05
    assert not judged(course, error(size, gap=gap * WIDEST_REGULAR_GAP, order=1))
    assert (course.setting, course.finer) == (made, made.finer(most))


def test_a_setting_that_is_known_to_do_is_not_given_up_for_both_solves():
    course = Course(MILD, 1e-3)
    assert judged(course, error(1e-5, gap=0.001), change=1e-5, costs=(80, 100))
    known = course.working
    assert course.due  # a coarser pair is tried
    assert not judged(course, error(1.8e-3, gap=0.03), left=0.5)
    assert course.working == known


def test_an_error_that_does_not_fall_stalls_where_it_should_have_fallen():
    course = Course(MILD, 1e-3)
    for stalled in (False, True):
        assert not judged(course, error(6e-3, gap=0.03))
        assert course.stalled == stalled
    course = Course(MILD, 1e-3)
    for _ in range(3):
        assert not judged(course, error(1.1e-3, gap=0.03))
        assert not course.stalled


@pytest.mark.parametrize(("order", "gap"), [(1, 0.6), (2, 0.3), (4, 0.2)])
def test_an_unclear_miss_is_followed_by_more_steps(order, gap):
    course = Course(MILD, 1e-3)
    made = course.finer
    assert not judged(course, error(0.015, gap=gap, order=order))
    assert (course.setting, course.finer) == (made, made.with_steps(FURTHER))


@pytest.mark.parametrize(
    ("pilot", "further"), [(STIFF, FURTHER_IF_STABLE), (Pilot(500.0, affine=True), FURTHER)]
)
def test_a_stable_solver_goes_on_with_a_few_more_steps(pilot, further):
    course = Course(pilot, 1e-2)
    made = course.finer
    assert made.steps is None
    assert not judged(course, error(0.1, gap=0.3, order=2))
    assert (course.setting, course.finer) == (made, made.with_steps(further))


def test_steps_beyond_the_most_that_are_tried_still_make_a_pair():
    course = Course(Pilot(1.4 * MOST_STEPS, real_spectrum=False), 1e-3)
    for gap in (0.03, 3.0, 0.03, 3.0):
        assert not judged(course, error(5e-3, gap=gap))
        assert course.finer.fineness > course.setting.fineness


def test_the_stabilised_solver_is_judged_by_a_pair():
    course = Course(STIFF, 1e-2)
    assert course.setting == stabilized(STIFF, 1e-2)
    assert course.finer.fineness == pytest.approx(7 * course.setting.fineness)
    assert not judged(course, error(1.01e-2, gap=0.03, order=2))
    assert judged(course, error(0.99e-2, gap=0.03, order=2))


def test_the_stabilised_solver_takes_over_after_some_settings_that_were_unstable():
    course = Course(MILD, 1e-3)
    for _ in range(PATIENCE + 1):
        assert course.setting.method == "rk4"
        course.fail(FURTHER)
    assert course.setting.method == "stabilized-rk"
    assert "unstable" in course.why


def test_unstable_steps_are_followed_by_a_pair_of_as_many_more_as_they_ask_for():
    course = Course(MILD, 0.1)
    first = course.setting
    course.fail(1.7)
    assert course.setting.steps == math.ceil(1.7 * first.steps)
    assert course.finer == course.setting.partner
    course.fail(FURTHER)
    assert course.setting.steps == math.ceil(FURTHER * math.ceil(1.7 * first.steps))


def test_it_never_takes_over_where_the_spectrum_may_be_complex():
    course = Course(MILD_COMPLEX, 1e-3)
    for _ in range(10):
        course.fail(FURTHER)
    assert course.setting.method == "rk4"


def settled(cost, size=0.03):
    """A course with the stabilised solver, and what its calls cost."""
    course = Course(STIFF, 0.1)
    assert judged(course, error(size, gap=0.02, order=2), 0.02, (cost, 1.5 * cost))
    return course


def test_fixed_steps_are_tried_once_where_they_may_cost_less():
    course = settled(1000)
    stabilised = course.working
    assert course.setting.method == "euler"
    assert course.setting.cost == 2 * course.setting.steps < 1000
    course.fail(FURTHER)
    assert course.working == course.setting == stabilised
    assert not course.due


@pytest.mark.parametrize(("cost", "method"), [(200, "euler"), (1200, "stabilized-rk")])
def test_the_method_that_costs_less_is_kept(cost, method):
    course = settled(1000)
    assert judged(course, error(0.04, gap=0.04, order=1), 0.01, (cost, 1.25 * cost))
    assert course.working.method == method
    assert ("fixed steps cost less" in course.why) == (method == "euler")


def test_fixed_steps_are_not_tried_where_they_cost_more():
    assert settled(100).setting.method == "stabilized-rk"


def test_a_coarser_setting_is_still_tried_after_fixed_steps_were_in_vain():
    course = settled(1000, size=1e-3)
    before = course.working
    course.fail(FURTHER)
    assert course.working == before
    assert course.setting.method == "stabilized-rk"
    assert course.setting.fineness < before.fineness
    assert course.due
