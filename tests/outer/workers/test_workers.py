"""Two processes give the numbers of one."""

from __future__ import annotations

import shutil

import pytest
import torch
from support import distributed as cases

import odeopt
from odeopt.tools import tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one process that two go on with, and what each of two processes found."""
    torch.set_default_dtype(torch.float64)
    folder = tmp_path_factory.mktemp("runs")
    cases.learner("meta-sgd", folder=folder / "alone").fit(3)
    texts, codes = cases.finish(cases.start("everything", folder))
    assert codes == [0, 0], "\n".join(texts)
    return folder, [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_identical(first, second):
    """Bit for bit, NaN equal to NaN."""
    assert str(first) == str(second)  # structures and plain numbers
    pairs = zip(tree.tensors(first), tree.tensors(second), strict=True)
    assert all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in pairs)


def assert_close(found, expected, tolerance=1e-11):
    """The same to rounding, and exactly where they are no real numbers."""
    assert tree.structure(found) == tree.structure(expected)
    for x, y in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        if isinstance(y, torch.Tensor | float):
            scale = float(torch.as_tensor(y).abs().max()) if torch.as_tensor(y).numel() else 0.0
            torch.testing.assert_close(x, y, rtol=tolerance, atol=0.1 * tolerance * scale)
        else:
            assert x == y


def test_there_are_two(runs):
    assert [found["workers"] for found in runs[1]] == [(0, 2, "cpu"), (1, 2, "cpu")]


@pytest.mark.parametrize("name", cases.CASES)
def test_a_gradient_is_that_of_one_process(runs, name):
    both = [found["results"][name] for found in runs[1]]
    assert_identical(*both)
    expected = cases.numbers(cases.CASES[name](cases.plain))
    if name == "stopped":  # tasks together look for each other's events
        both[0]["stats"] = expected["stats"]
    assert_close(of_tasks_that_are_well(both[0]), of_tasks_that_are_well(expected))


@pytest.mark.parametrize("kind", cases.COPIES)
def test_a_copy_of_a_built_in_does_what_that_does(runs, kind):
    for found in runs[1]:
        itself, copy = found["copies"][kind]
        assert_close(copy, itself)


def of_tasks_that_are_well(found):
    """Without rows of failed tasks, which are not defined, and what they cost."""
    well = found["status"] == odeopt.Status.OK
    pick = lambda leaf: leaf[well]  # noqa: E731
    rows = ("values", "dt", "batch", "aux", "diagnostics")
    picked = {name: tree.map_tensors(pick, found[name]) for name in rows}
    stats = found["stats"] if bool(well.all()) else found["stats"]["hvps"]
    return {**found, **picked, "stats": stats}


def test_nothing_is_left_of_a_group_that_was_closed(runs):
    assert [found["threads"] for found in runs[1]] == [[], []]


def test_a_group_that_is_there_is_used(runs):
    for found in runs[1]:
        assert_identical(found["in a group"], found["results"]["uneven"])


@pytest.mark.filterwarnings("ignore:the inner problem has not converged")
@pytest.mark.parametrize("name", odeopt.METHODS.names())
def test_a_method_is_that_of_one_process(runs, name):
    found = [one["methods"][name] for one in runs[1]]
    assert_identical(*found)
    expected = cases.meta_gradient(name, cases.plain)
    assert_close(found[0], expected, 1e-7 if name == "a-maml" else 1e-11)  # tasks share its steps


def test_tasks_that_fail_are_reported_with_their_values(runs):
    found = runs[1][0]["results"]["infinite values"]
    assert found["values"][2:].tolist() == [torch.inf, -torch.inf]
    assert found["status"].tolist() == [0, 0, 2, 2]
    found = runs[1][1]["results"]["all of worker 0 fail"]
    assert found["status"].tolist() == [1, 1, 0]
    assert found["dt"][:2].isnan().all()
    assert found["values"].isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize(("name", "kinds", "message"), [
    ("diverging", ["DivergenceError"] * 2, "task 1: the state is not finite"),
    ("all fail", ["DivergenceError"] * 2, "task 0: the state is not finite"),
    ("broken", ["WorkerError", "KeyError"], "no such thing"),
    ("another batch", ["WorkerError"] * 2, "the batch of worker 1 are not those of worker 0"),
    ("other parameters", ["WorkerError"] * 2, "params and hparams of worker 1"),
    ("other shapes", ["WorkerError"] * 2, "the batch of worker 1 are not those of worker 0"),
    ("random", ["CompatibilityError"] * 2, "Stream with a seed"),
    ("another place", ["WorkerError"] * 2, "worker 0 in 'place 0', worker 1 in 'place 1'"),
])  # fmt: skip
def test_an_error_reaches_every_worker(runs, name, kinds, message):
    found = [found["errors"][name] for found in runs[1]]
    assert [one["kind"] for one in found] == kinds
    assert all(message in one["message"] for one in found)


@pytest.mark.parametrize(("name", "message"), [
    ("another rate", "in value_and_grad, the grid of worker 1 are not those of worker 0"),
    ("other steps", "the grid of worker 1"),
    ("another solver", "the solver of worker 1 are not those of worker 0"),
    ("another adjoint", "the adjoint"),
    ("another option", "the inner optimizer of worker 1"),
    ("a captured number", "the inner optimizer of worker 1"),
    ("another outer loss", "the outer loss of worker 1"),
    ("another on_failure", "(on_failure: 'skip', not 'raise')"),
    ("other aux", "the structure of the result of worker 1"),
    ("a method's rate", "in a meta-gradient, the method of worker 1"),
    ("a method's steps", "in an evaluation, the method of worker 1"),
    ("another method", "the method of worker 1"),
    ("another clip", "before update 0, clip of worker 1 are not those of worker 0 (clip: 2.0, not"),
    ("another outer rate", "before update 0, the outer optimizer of worker 1"),
    ("another outer rate later", "in update 1, the outer optimizer's options of worker 1"),
    ("more updates", "(updates and tolerance: tuple(2, 0.0), not tuple(1, 0.0))"),
    ("other validation", "validate_every of worker 1"),
])  # fmt: skip
def test_workers_that_were_made_otherwise_are_told_before_anything_is_computed(runs, name, message):
    for found in runs[1]:
        assert found["disagreements"][name]["kind"] == "WorkerError"
        assert message in found["disagreements"][name]["message"]
    assert [found["disagreements"]["the same"] for found in runs[1]] == [None, None]


def test_an_error_says_whose_tasks_are_meant(runs):
    for found in runs[1]:
        notes = found["errors"]["diverging"]["notes"]
        assert notes == ["on worker 1, which has tasks 2 to 3 of the 4 and counts them from 0"]
    assert runs[1][0]["errors"]["diverging"]["message"].startswith("worker 1 failed: task 1")


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "reptile"])
def test_a_run_is_that_of_one_process(runs, name, tmp_path):
    found = [found["training"][name] for found in runs[1]]
    assert_identical(*found)
    expected = cases.learner(name, folder=tmp_path)
    expected.fit(6)
    assert_close(found[0], cases.learned(expected))


def test_an_interrupted_run_of_two_goes_on_bit_for_bit(runs):
    _, (found, other) = runs
    for name in ("resumed", "parts"):
        assert_identical(found["training"][name], other["training"][name])
    _, updates, kind = found["training"]["resumed"]
    assert (updates, kind) == (4, "OdeoptError")
    assert_identical(found["training"]["parts"], found["training"]["meta-sgd"])


def test_a_run_of_one_is_gone_on_with_by_two(runs, tmp_path):
    expected = cases.learner("meta-sgd", folder=tmp_path)
    expected.fit(6)
    assert_close(runs[1][0]["training"]["alone"], cases.learned(expected))


def test_a_run_of_two_is_gone_on_with_by_one(runs, tmp_path):
    folder, _ = runs
    shutil.copytree(folder / "maml", tmp_path / "maml")
    run = cases.learner(folder=tmp_path / "maml")
    assert run.restore()
    assert run.updates == 6
    run.fit(8)
    expected = cases.learner(folder=tmp_path / "whole")
    expected.fit(8)
    pairs = zip(cases.learned(run)["history"], cases.learned(expected)["history"], strict=True)
    for own, other in pairs:  # the first part validated after its last update, the sixth
        assert_close(own[:3], other[:3])
    assert_close(run.params, expected.params)


def test_one_worker_writes(runs):
    folder, found = runs
    assert sorted(path.name for path in (folder / "maml").iterdir()) == [
        "checkpoint.pt", "metrics.jsonl",
    ]  # fmt: skip
    assert len((folder / "maml" / "metrics.jsonl").read_text().splitlines()) == 6
    for one in found:
        assert one["training"]["again"]["kind"] == "InputError"


def test_a_folder_that_is_not_the_workers_own_is_refused_by_all(runs):
    for one in (one["training"] for one in runs[1]):
        assert one["other"]["kind"] == "InputError"
        assert "differs in clip" in one["other"]["message"]
        for refused in one["busy"]:
            assert refused["kind"] == "StorageError"
            assert "in use by another learner" in refused["message"]


@pytest.mark.parametrize("name", ["maml", "reptile"])
def test_a_task_that_fails_is_left_out_and_named_by_all(runs, name):
    found = [one["failures"][name] for one in runs[1]]
    assert_identical(*found)
    expected = cases.wild_learner(name)
    with pytest.warns(odeopt.OdeoptWarning, match="left out"):
        steps = expected.fit(2)
    assert all(step.failed == ("wild (STATE_NOT_FINITE)",) for step in steps)
    assert_close(found[0], ([(step.value, step.failed) for step in steps], expected.params))


def test_failures_of_a_run_reach_every_worker(runs):
    first, second = (one["failures"] for one in runs[1])
    for found in (first["raised"], second["raised"]):
        assert found["kind"] == "DivergenceError"
        assert "in update 0, whose tasks are: " in found["notes"][1]
    assert (first["no data"]["kind"], second["no data"]["kind"]) == (
        "WorkerError", "FileNotFoundError",
    )  # fmt: skip
    assert first["no data"]["message"] == "worker 1 failed: FileNotFoundError: data.pt"
    for found in (first["other start"], second["other start"]):
        assert found["kind"] == "WorkerError"
        assert found["message"].startswith("before update 0, params of worker 1 are not those")
