"""The benchmark `peers`: its contenders, what they are compared with, and how they are asked."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

import odeopt
from benchmarks import __main__ as cli
from benchmarks.harness import processes, strict_json
from benchmarks.harness.registry import Preset
from benchmarks.peers import contenders as c
from benchmarks.peers import measure, problems
from benchmarks.peers.contenders import CONTENDERS, SIZES, Limits, Point
from benchmarks.peers.problems import MAP, Contender, Outcome, Runner
from odeopt.testing import relative_error

COMPILED = {
    c.OURS: c.descent(compile="trace"),
    c.BINOMIAL: c.descent(c.binomial, compile="trace"),
    c.DENSITY: c.descent(c.density, compile="trace"),
}
"""Exact contenders that are compiled, here recorded only."""


def setup_of(problem, tasks, steps, device):
    return Point(problem, steps, tasks, dtype="float64").setup(device)


def recorded(function, inputs):
    """In place of compilation."""
    return function


def refuse(setup, setting):
    raise NotImplementedError("not here")


def made(name, setup, monkeypatch):
    monkeypatch.setattr(c, "compiled", recorded)
    return COMPILED.get(name, CONTENDERS[name].make)(setup, None)


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("name", [n for n, one in CONTENDERS.items() if one.target == MAP])
def test_exact_contenders_give_the_gradient_of_unrolled_autograd(name, monkeypatch, device):
    pytest.importorskip(CONTENDERS[name].package)
    setup = setup_of("mlp", 2, 5, device)
    expected = c.unrolled(setup, None).run(5).gradient
    runner = made(name, setup, monkeypatch)
    runner.run(1)
    for _ in range(2):  # a second run starts anew
        assert relative_error(runner.run(runner.steps).gradient, expected) < 1e-8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("problem", ["conv", "transformer"])
def test_the_other_problems_do_too(problem, monkeypatch, device):
    monkeypatch.setattr(problems, "FILTERS", 4)
    monkeypatch.setattr(problems, "WINDOWS", 2)
    setup = setup_of(problem, 1, 2, device)
    expected = c.unrolled(setup, None).run(2).gradient
    assert torch.isfinite(expected).all()
    for name in (c.HIGHER, c.TORCHOPT, c.VMAP_UNROLLED, c.EAGER):
        if not CONTENDERS[name].installed:
            continue
        runner = made(name, setup, monkeypatch)
        assert relative_error(runner.run(2).gradient, expected) < 1e-8


@pytest.mark.filterwarnings("ignore")
def test_contenders_for_the_flow_approach_its_gradient(device):
    setup = setup_of("mlp", 2, 50, device)
    found, own = measure.compute_targets(setup)
    assert own < 1e-6
    flows = c.flow(odeopt.DiscreteAdjoint(), None)
    hermite = c.flow(odeopt.ContinuousAdjoint(odeopt.RK4()), None)
    settings = [(flows, 8), (hermite, 8)]
    if CONTENDERS[c.TORCHDIFFEQ].installed:
        settings.append((CONTENDERS[c.TORCHDIFFEQ].make, 1e-6))
    for make, setting in settings:
        runner = make(setup, setting)
        errors = measure.errors(found, runner.run(runner.steps).gradient)
        assert errors["B"] < 1e-4 < errors["A"]


def test_bare_kernels_are_called_as_often_as_there_are_steps_and_no_more(monkeypatch, device):
    calls = []

    def counting(function, inputs):
        run = recorded(function, inputs)

        def counted(*tensors):
            calls.append(len(tensors))
            return run(*tensors)

        return counted

    monkeypatch.setattr(c, "compiled", counting)
    runner = c.kernels(setup_of("mlp", 2, 7, device), None)
    runner.run(7)
    assert calls == [4] * 7 + [5] * 7


def test_a_kernel_that_is_compiled_wrongly_is_refused(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: lambda x: [x + 1e-3])
    with pytest.raises(RuntimeError, match="the compiled kernel is off by"):
        c.compiled(lambda x: [2 * x / 2], [torch.ones(3)])


def test_presets_name_contenders_that_there_are():
    for sizes in SIZES.values():
        assert {n for point in sizes.points for n in point.contenders} <= CONTENDERS.keys()
        assert {name for name, _ in sizes.precision} <= CONTENDERS.keys()
        keys = [point.key for point in sizes.points]
        assert len(set(keys)) == len(keys)
    paper = SIZES[Preset.PAPER].points
    assert {point.problem for point in paper} == problems.PROBLEMS.keys()
    assert {10, 2000} <= {point.steps for point in paper}
    assert {1, 64} <= {point.tasks for point in paper}


class Inside:
    """A process that is none."""

    def __init__(self, variables=None):
        self._measured = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, function, job, request, limit):
        assert function is measure.answer
        self._measured = self._measured or measure.Subject(job)
        return self._measured.answer(request)


@pytest.fixture
def inside(monkeypatch):
    monkeypatch.setattr(processes, "Child", Inside)
    monkeypatch.setattr(processes, "run", lambda function, *args, limit: function(*args))


@pytest.mark.filterwarnings("ignore")
def test_the_report_of_a_smoke_run(inside, tmp_path, monkeypatch):
    pytest.importorskip("higher")
    arguments = ["peers", "--preset", "smoke", "--results", str(tmp_path)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert "| odeopt, not compiled | A |" in text
    assert "## Where others are ahead" in text
    assert "at least 10 times as fast as higher and TorchOpt | not measured | - |" in text
    cells = strict_json.loads((tmp_path / "results.json").read_bytes())["cells"]
    (cell,) = cells.values()
    for found in cell["contenders"].values():
        assert found["outcome"] == ""
        assert found["errors"]["A"] < 1e-5 < found["errors"]["B"]
        assert found["live_bytes"] > 2 * 1185 * 4
    monkeypatch.setattr(measure, "compute", lambda *_: pytest.fail("computed again"))
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0


@pytest.mark.filterwarnings("ignore")
def test_who_fails_or_is_slow_or_missing_is_said_and_the_others_go_on(inside, monkeypatch):
    def fine(setup, setting):
        return Runner(1, lambda count: Outcome(torch.ones(1185)))

    monkeypatch.setitem(CONTENDERS, "failing", Contender("failing", "", MAP, refuse))
    monkeypatch.setitem(CONTENDERS, "quick", Contender("quick", "", MAP, fine))
    monkeypatch.setitem(CONTENDERS, "gone", Contender("gone", "", MAP, fine, "", "no_package"))
    point = Point("mlp", 2, 1, ("failing", "quick", "gone"))
    found = measure.compute(point, Limits(3, 10.0, 9.0, 8.0), "cpu", "")["contenders"]
    assert found["failing"] == {"outcome": "NotImplementedError", "message": "not here"}
    assert found["gone"]["outcome"] == "not installed"
    assert len(found["quick"]["seconds"]) == 3
    found = measure.compute(point, Limits(3, 0.0, 9.0, 8.0), "cpu", "")["contenders"]
    assert len(found["quick"]["seconds"]) == 1


@pytest.mark.slow
def test_contenders_in_one_process_are_timed_in_turn(monkeypatch, device):
    monkeypatch.setitem(CONTENDERS, "failing", Contender("failing", "", MAP, refuse))
    entries = ((c.EAGER, None), ("failing", None), (c.UNROLLED, 2))
    point = Point("mlp", 4, 1, dtype="float64")
    found = measure.measure_together(entries, point, str(device), 3)["entries"]
    assert [len(entry["seconds"]) for entry in found] == [3, 0, 3]
    assert found[0]["errors"]["A"] < 1e-8 < found[2]["errors"]["A"]  # the last in two steps
    assert found[1]["outcome"] == "NotImplementedError"


@pytest.mark.slow
def test_a_long_horizon_has_a_radius_and_two_solvers(device):
    found = measure.measure_long(8.0, (1e-2, 1e-3), str(device), None)
    assert found["stiffness"] == 8.0 * found["radius"] > 20
    assert found["reference_error"] < 1e-3
    assert found["descent"]["stored_states"] == found["descent"]["steps"]
    loose, tight = found["stabilised"]
    assert tight["error"] < loose["error"] < 0.2
    assert tight["evaluations"] > loose["evaluations"]
