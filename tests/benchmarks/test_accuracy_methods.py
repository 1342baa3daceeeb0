"""The quality of meta-gradients: the targets against oracles, and the report."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import odeopt
from benchmarks import __main__ as cli
from benchmarks import methods
from benchmarks.accuracy_vs_checkpoints import quality
from benchmarks.harness import strict_json
from benchmarks.harness.registry import Preset
from odeopt.tools.tree import flat

SMALL = quality.SIZES[Preset.SMOKE]
ENTRIES = {entry.label: entry for entry in quality.entries()}


@pytest.fixture
def given():
    return quality.inputs("cosmixture", SMALL, torch.device("cpu"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    arguments = ["accuracy-vs-checkpoints", "--only", "methods", "--preset", "smoke"]
    arguments += ["--results", str(folder)]
    folder = folder / "methods"
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    cells = strict_json.loads((folder / "results.json").read_bytes())["cells"]
    return folder, cells


def unrolled(given, t1, steps, strength):
    """Autograd through RK4 and the proximal terms, task by task."""
    start = {k: leaf.clone().requires_grad_() for k, leaf in given.params.items()}
    tasks = given.tasks
    values = []

    def pull(u):
        return 0.5 * strength * sum((u[k] - start[k]).square().sum() for k in u)

    def slope(u, batch):
        value = given.problem.loss(u, batch) + pull(u)
        found = torch.autograd.grad(value, list(u.values()), create_graph=True)
        return {k: -g for k, g in zip(u, found, strict=True)}

    def moved(u, h, *pairs):
        return {k: u[k] + h * sum(w * v[k] for w, v in pairs) for k in u}

    for index in range(SMALL.tasks):
        train, validation = (type(part)(part.x[index], part.y[index]) for part in tasks)
        u, h = {k: leaf * 1 for k, leaf in start.items()}, t1 / steps
        for _ in range(steps):
            a = slope(u, train)
            b = slope(moved(u, h, (0.5, a)), train)
            c = slope(moved(u, h, (0.5, b)), train)
            d = slope(moved(u, h, (1.0, c)), train)
            u = moved(u, h, (1 / 6, a), (1 / 3, b), (1 / 3, c), (1 / 6, d))
        values.append(given.problem.loss(u, validation) + pull(u))
    found = torch.autograd.grad(torch.stack(values).mean(), list(start.values()))
    return flat(dict(zip(start, found, strict=True)))


@pytest.mark.parametrize(("kind", "strength"), [("flow", 0.0), ("regularised flow", 1.0)])
def test_the_gradients_of_flows_are_those_of_unrolled_solves(kind, strength, given):
    found = quality.FLOWS[kind](given, 0.4, 3)
    torch.testing.assert_close(found, unrolled(given, 0.4, 3, strength), rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_at_the_minimiser_is_that_of_a_long_imaml(given):
    target = quality._at_minimiser(given)
    assert target.error < 1e-12
    inner = methods.Inner(0.05, 600, 1)
    method = methods.build("imaml-gd", given.problem, inner, cg_steps=60)
    long = quality._flat_gradient(method, given)
    assert (target.gradient - long).norm() < 1e-5 * long.norm()


@pytest.mark.parametrize("name", quality.TITLES)
def test_every_problem_can_be_made(name):
    found = quality.inputs(name, SMALL, torch.device("cpu"))
    value = torch.func.vmap(found.problem.loss, (None, 0))(found.params, found.tasks.train)
    assert value.shape == (SMALL.tasks,)
    assert torch.isfinite(value).all()
    assert found.params.keys() == found.problem.model.init(1).keys()


def test_every_method_is_there_and_has_a_target():
    assert {entry.method for entry in ENTRIES.values()} == {*methods.PAPER, *methods.OTHERS}
    assert set(quality.OWN) == {*methods.PAPER, *methods.OTHERS}
    assert set(quality.WORDS) == set(quality.OWN.values())
    assert len(ENTRIES) == len(quality.OWN) + 1


@pytest.mark.parametrize(
    ("label", "bound"),
    [("A-MAML", 1e-3), ("MAML", 1e-5), ("MAML-1", 1e-5), ("COMLN", 1e-3), ("ANIL", 1e-5),
     ("Meta-SGD", 1e-5)],
)  # fmt: skip
def test_methods_meet_their_own_targets(label, bound, smoke):
    cell = smoke[1][f"cosmixture T=0.05 {label}"]
    assert cell["failure"] == ""
    assert cell["own"]["error"] < bound
    assert cell["own"]["cosine"] > 1 - bound
    assert cell["live_bytes"] > 0
    assert cell["seconds"] > 0


def test_the_report_of_a_smoke_run_has_every_method(smoke):
    folder, cells = smoke
    text = (folder / "report.md").read_text()
    assert "## CosMixture" in text
    for label in ENTRIES:
        assert f"\n| {label} |" in text
        assert f"cosmixture T=0.05 {label}" in cells
    assert (folder / "cosine-cosmixture.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def refusing(monkeypatch):
    """Guards refuse what is asked of them; `always` says whether it fails without them too."""
    original = quality._call

    def use(always):
        def call(entry, t1, given, safety):
            if always or safety != odeopt.Safety.off():
                raise odeopt.StabilityError("too long")
            return original(entry, t1, given, safety)

        monkeypatch.setattr(quality, "_call", call)
        make = partial(quality.inputs, "cosmixture", SMALL, torch.device("cpu"))
        targets = quality.targets_of(make, 0.05, SMALL)
        return quality._compute(make, targets, 0.05, 1, ENTRIES["MAML"])

    return use


def test_refused_gradients_are_named_with_their_numbers(refusing):
    cell = refusing(always=False)
    assert cell["failure"] == "StabilityError"
    assert quality._row(ENTRIES["MAML"], cell) == (["MAML (StabilityError)"], cell)
    assert cell["own"]["error"] < 1e-5
    assert "StabilityError: too long" in quality._failures({"key": cell})


def test_failed_methods_are_named_without_numbers(refusing):
    cell = refusing(always=True)
    assert quality._row(ENTRIES["MAML"], cell) == (["MAML (StabilityError)"], "")
