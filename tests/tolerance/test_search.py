"""Which settings are measured, and which is kept: decisions without any solves."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odeopt.engine.stats import Stats
from odeopt.gradient.result import ErrorEstimate
from odeopt.tolerance.search import AIM, AUDIT, ENOUGH, Pair, Search, size
from odeopt.tolerance.setting import FIXED, PAIR, RTOL_POWER, Setting

TOL = 1e-2


def error(params, hparams=0.0):
    return ErrorEstimate(0.0, params, hparams, 0.01, 1, (), Stats())


def pair(method, fineness, own, change, cost):
    coarse = Setting(method, fineness)
    return Pair(coarse, coarse.partner(1), error(own), change, (cost, cost + 2))


@pytest.fixture
def search():
    """After a first call that cost 100 with an error that leaves little room."""
    search = Search(TOL, "stabilized-rk", FIXED)
    search.accept(pair("stabilized-rk", 100.0, 0.7 * TOL, 2 * TOL, 98))
    return search


def model(method, fineness):
    """The error and the cost of a pretended problem, on which RK4 is the cheapest."""
    constants = {"euler": 2.0, "modified-euler": 4.0, "chebyshev-2": 6.0, "chebyshev-3": 9.0,
                 "rk4": 10.0}  # fmt: skip
    solver = FIXED[method]
    return (constants[method] / fineness) ** solver.order, 2 * solver.stages * fineness


def measure(search, setting):
    """What a call does with a proposal, on the pretended problem."""
    fine = setting.partner(1)
    (coarse_error, coarse_cost), (fine_error, fine_cost) = (
        model(each.method, each.fineness) for each in (setting, fine)
    )
    change = coarse_error - fine_error
    if not search.meets(fine_error):
        return search.reject(setting, fine_error)
    costs = round(coarse_cost), round(fine_cost)
    return search.accept(Pair(setting, fine, error(fine_error), change, costs))


def test_the_cheapest_of_all_methods_is_found_and_then_nothing_is_measured(search):
    search = Search(TOL, "stabilized-rk", FIXED)
    search.accept(pair("stabilized-rk", 100.0, 0.7 * TOL, 2 * TOL, 2000))
    measured = 0
    while (setting := search.proposal()) is not None:
        measure(search, setting)
        measured += 1
        assert measured < 30
    known = {
        name: min(n for n in range(1, 2000) if search.meets(model(name, n)[0])) for name in FIXED
    }
    best = min(known, key=lambda name: model(name, known[name])[1])
    least = model(best, known[best])[1]
    assert search.working.setting.method == best
    assert search.working.cost <= 1.15 * least
    assert measured <= 15


@given(
    seed=st.integers(0, 10**6), cost=st.integers(20, 2000), tol=st.sampled_from([1e-1, 1e-2, 1e-3])
)
def test_measuring_comes_to_an_end_whatever_the_errors_are(seed, cost, tol):
    """Errors are random, as far as those of finer settings are smaller; costs never grow."""
    draw = random.Random(seed)
    search = Search(tol, "stabilized-rk", FIXED)
    coarse = search.first
    costs = cost, round(draw.uniform(1, 3) * cost)
    search.accept(Pair(coarse, coarse.partner(1), error(0.7 * tol), draw.random() * tol, costs))
    used = [search.working.cost]
    for _ in range(60):
        setting = search.proposal()
        if setting is None:
            break
        fine, own = setting.partner(1), tol * 10 ** draw.uniform(-4, 2)
        if draw.random() < 0.2:
            search.reject(setting)
        elif search.meets(own):
            spent = round(draw.uniform(0.2, 1.5) * used[-1])
            change = tol * 10 ** draw.uniform(-4, 2)
            search.accept(Pair(setting, fine, error(own), change, (spent, spent + 3)))
        else:
            search.reject(setting, own)
        used.append(search.working.cost)
        assert size(search.working.error) <= ENOUGH * tol
    else:
        raise AssertionError("it goes on for ever")
    assert used == sorted(used, reverse=True)


def test_the_coarser_of_a_pair_is_kept_where_it_does(search):
    search.accept(pair("euler", 10.0, 0.2 * TOL, 0.3 * TOL, 20))
    assert search.working.setting == Setting("euler", 10.0)
    assert size(search.working.error) == pytest.approx(0.5 * TOL)
    assert search.working.cost == 20


def test_the_finer_one_is_kept_where_the_coarser_does_not(search):
    search.accept(pair("euler", 10.0, 0.2 * TOL, 0.7 * TOL, 20))
    assert search.working.setting == Setting("euler", 11.0)
    assert size(search.working.error) == pytest.approx(0.2 * TOL)
    assert search.working.cost == 22


def test_a_dearer_setting_is_listed_but_not_used(search):
    before = search.working
    search.accept(pair("rk4", 40.0, 0.2 * TOL, 0.1 * TOL, 320))
    assert search.working is before
    assert search.measured["rk4"].cost == 320


def test_new_methods_begin_below_the_cost_of_what_is_used(search):
    setting = search.proposal()
    solver = FIXED[setting.method]
    assert 2 * solver.stages * setting.steps <= 0.8 * search.working.cost


def test_a_method_whose_next_setting_would_cost_as_much_is_given_up(search):
    for name in FIXED:
        search.reject(Setting(name, 1000.0), 2 * TOL)
    assert search.proposal() is None


def test_after_an_error_the_order_says_how_fine_the_next_setting_is():
    search = Search(TOL, "adaptive", ["modified-euler"])
    search.accept(pair("adaptive", 100.0, 0.7 * TOL, 2 * TOL, 98))
    search.reject(Setting("modified-euler", 8.0), 4 * TOL)
    assert search.proposal() == Setting("modified-euler", math.ceil(8 * (4 / AIM) ** 0.5))


def test_what_was_too_coarse_is_not_measured_again():
    search = Search(TOL, "adaptive", ["euler"])
    search.accept(pair("adaptive", 100.0, 0.7 * TOL, 2 * TOL, 98))
    search.working = search.working._replace(cost=1000)
    search.reject(Setting("euler", 20.0), 3 * TOL)
    search.accept(pair("euler", 60.0, 0.1 * TOL, 0.01 * TOL, 120))
    proposal = search.proposal()
    assert proposal.method == "euler"
    assert 20 < proposal.steps < 60


def test_the_robust_method_gets_coarser_only_while_it_is_in_use(search):
    for name in FIXED:
        search.reject(Setting(name, 1000.0))
    search.accept(pair("stabilized-rk", 400.0, 0.05 * TOL, 0.01 * TOL, 80))
    assert search.proposal().method == "stabilized-rk"
    search.accept(pair("euler", 20.0, 0.7 * TOL, 0.01 * TOL, 40))
    assert search.proposal() is None or search.proposal().method != "stabilized-rk"


def test_a_finer_setting_is_finer_however_near_the_error_is():
    search = Search(TOL, "adaptive", ())
    setting = search.finer(Setting("adaptive", 100.0), 1.01 * ENOUGH * TOL)
    assert setting.fineness >= 130
    far = search.finer(Setting("adaptive", 100.0), 1e9)
    assert far.fineness == pytest.approx(100 * 1e3 ** (1 / RTOL_POWER))
    unknown = search.finer(Setting("adaptive", 100.0), math.inf)
    assert unknown == Setting("adaptive", 100.0).partner(1)


def test_an_audit_comes_after_so_many_calls_and_says_whether_the_setting_does(search):
    for _ in range(AUDIT):
        assert not search.due
        search.count()
    assert search.due
    assert search.audit(error(0.99 * TOL))
    assert not search.due
    assert not search.audit(error(0.1 * TOL, hparams=1.01 * TOL))


def test_starting_again_forgets_everything(search):
    search.restart()
    assert search.working is None
    assert search.measured == {}


def test_errors_that_are_not_known_are_infinite():
    assert size(error(math.nan, 0.1)) == math.inf
    assert size(error(0.1, math.inf)) == math.inf
    assert size(error(0.1, 0.2)) == 0.2


def test_partners():
    assert Setting("euler", 5.0).partner(3) == Setting("euler", 8.0)
    assert Setting("adaptive", 5.0).partner(3) == Setting("adaptive", 5.0 * PAIR)


def test_a_pair_has_more_steps_in_each_part():
    coarse, fine = Setting("rk4", 6.0), Setting("rk4", 8.0)
    counts, factor = fine.beside(coarse, [4, 2])
    assert counts == [6, 3]
    assert factor == pytest.approx(1.5**4)
