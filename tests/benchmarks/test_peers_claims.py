"""The verdicts of the benchmark `peers`, and where it says that others are ahead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.harness.registry import Preset
from benchmarks.peers import contenders as c
from benchmarks.peers import criteria, report
from benchmarks.peers.contenders import SIZES, Point, Stiff

KEYS = {dtype: Point("mlp", 500, 5, dtype=dtype).key for dtype in ("float32", "float64")}


def cell(seconds, size=1000, flow=1e-3):
    return {
        "outcome": "", "seconds": [seconds], "live_bytes": size, "errors": {"A": 1e-7, "B": flow}
    }  # fmt: skip


def stiff_cell(stiffness, evaluations, states, error):
    descent = {"failure": "", "evaluations": 1000, "stored_states": 3000, "error": 1e-2}
    entry = {"failure": "", "evaluations": evaluations, "stored_states": states, "error": error}
    cheap = {"failure": "", "evaluations": 1, "stored_states": 1, "error": 1.0}
    failed = {"failure": "DivergenceError"}
    return {"outcome": "", "stiffness": stiffness, "descent": descent,
            "stabilised": [cheap, failed, entry]}  # fmt: skip


def cells(**changes):
    """Numbers that bear everything out, but for the changes."""
    own = {
        c.OURS: cell(0.1), c.BINOMIAL: cell(0.2, 90), c.DENSITY: cell(0.2, 95),
        c.HIGHER: cell(1.0), c.TORCHOPT: cell(1.5), c.RK4: cell(0.012), c.STABILISED: cell(0.01),
    }  # fmt: skip
    entries = [{"contender": c.OURS, "seconds": [1.0, 1.2, 9.0]},
               {"contender": c.KERNELS, "seconds": [1.0, 1.0, 1.0]}]  # fmt: skip
    found = {
        KEYS["float32"]: {"contenders": own | changes.get("single", {})},
        KEYS["float64"]: {"contenders": own | changes.get("double", {})},
        "overhead steps=500": {"outcome": "", "entries": entries},
        "stiff T=1": stiff_cell(2e4, 100, 100, 1e-2),
        "stiff T=2": stiff_cell(4e4, 100, 30, 1e-2),
    }
    return found | changes.get("others", {})


def verdicts(found):
    return [one.met for one in criteria.evaluate(found)]


def test_numbers_that_bear_everything_out():
    assert verdicts(cells()) == [True] * 7


@pytest.mark.parametrize(
    ("which", "changes"),
    [
        (0, {"single": {c.TORCHOPT: cell(0.9)}}),
        (1, {"double": {c.HIGHER: cell(0.4)}}),
        (2, {"single": {c.BINOMIAL: cell(0.2, 101), c.DENSITY: cell(0.3, 50)}}),
        (3, {"single": {c.RK4: cell(0.013), c.STABILISED: cell(0.001, flow=2e-2)}}),
        (4, {"others": {"stiff T=1": stiff_cell(2e4, 101, 100, 1e-2)}}),
        (4, {"others": {"stiff T=1": stiff_cell(2e4, 100, 101, 1e-2)}}),
        (5, {"others": {"stiff T=2": stiff_cell(4e4, 100, 31, 1e-2)}}),
        (5, {"others": {"stiff T=2": stiff_cell(4e4, 100, 30, 2e-2)}}),
        (6, {"others": {"overhead steps=2000": {"outcome": "", "entries": [
            {"contender": c.OURS, "seconds": [1.3]}, {"contender": c.KERNELS, "seconds": [1.0]},
        ]}}}),
    ],
)  # fmt: skip
def test_each_claim_fails_on_its_own(which, changes):
    assert verdicts(cells(**changes)) == [index != which for index in range(7)]


def test_a_slow_round_is_slow_for_all():
    ours, higher = [1.0, 9.0, 1.0], [11.0, 99.0, 11.0]
    assert criteria.times(higher, ours) == pytest.approx(11.0)
    assert criteria.times([5.0], ours) == pytest.approx(5.0)  # one run of the slower one


def test_what_was_not_measured_is_not_judged():
    assert verdicts({}) == [None] * 7
    failed = {"outcome": "did not fit", "message": ""}
    found = cells(single={c.HIGHER: failed}, double={c.OURS: failed})
    assert verdicts(found)[:4] == [None] * 4


def test_verdicts_stand_in_the_report_with_their_numbers():
    text = report.claims(cells(single={c.TORCHOPT: cell(0.9), c.KERNELS: cell(0.05)}))
    assert (
        "| **not met** | 10.0 times higher, 9.0 times TorchOpt"
        " (the bare kernels: 20.0 times higher, 18.0 times TorchOpt) |"
    ) in text
    assert "| met | odeopt, StabilizedRK: 100.0 times, error 1.0e-03 |" in text
    assert "1.20 times at 500 steps" in text


def test_a_peer_that_is_ahead_is_named():
    found = {
        c.OURS: cell(1.0, 1000), c.BINOMIAL: cell(2.0, 100), c.HIGHER: cell(0.5, 200),
        c.UNROLLED: cell(3.0, 50), c.TORCHOPT: {"outcome": "failed", "message": ""},
    }  # fmt: skip
    assert criteria.ahead(found) == [
        "higher is ahead in seconds: 0.50 of odeopt, every state",
        "unrolled autograd is ahead in peak memory: 0.50 of odeopt, Binomial",
    ]


def test_an_approximation_is_compared_with_what_is_as_accurate():
    found = {c.RK4: cell(1.0, flow=1e-3), c.TORCHDIFFEQ: cell(0.5, flow=1e-2)}
    assert len(criteria.ahead(found)) == 1
    assert criteria.ahead(found | {c.TORCHDIFFEQ: cell(2.0, 1001, flow=1e-2)}) == []
    (text,) = criteria.ahead(found | {c.TORCHDIFFEQ: cell(2.0, flow=1e-4)})
    assert "none of odeopt's configurations measured here is as accurate" in text


def test_missing_numbers_are_listed_with_their_reasons():
    late = {"outcome": "did not finish", "message": "more than 9 seconds"}
    text = report.missing({
        "a point": {"contenders": {c.HIGHER: late, c.OURS: cell(1.0)}},
        "precision": {"outcome": "", "entries": [
            {"contender": c.TORCHDIFFEQ, "setting": 1e-4, "outcome": "AssertionError",
             "message": "underflow in dt"},
        ]},
        "stiff T=9": late,
    })  # fmt: skip
    assert text.splitlines()[2:] == [
        "- a point, higher: did not finish (more than 9 seconds)",
        "- precision, torchdiffeq 0.0001: AssertionError (underflow in dt)",
        "- stiff T=9: did not finish (more than 9 seconds)",
    ]


def test_the_other_tables_show_failures_too():
    own = stiff_cell(2e4, 100, 100, 1e-2) | {"radius": 30.0, "reference_error": 1e-8}
    for entry in [own["descent"], *own["stabilised"]]:
        entry |= {"rtol": 1e-2, "seconds": 1.0}
    sizes = replace(SIZES[Preset.QUICK], stiff=(Stiff(3.0, ()),), overhead=(500,))
    text = report.long_horizons({"stiff T=3": own}, sizes)
    assert "| StabilizedRK, rtol = 0.01 | DivergenceError |" in text
    late = {"outcome": "did not finish", "message": "more than 9 seconds"}
    assert "did not finish" in report.overhead({"overhead steps=500": late}, sizes)
