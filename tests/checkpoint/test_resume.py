"""A solve that was interrupted goes on, and gives bitwise what it would have given."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import (
    Binomial,
    Density,
    Disk,
    Every,
    Graded,
    InputError,
    MemoryBudget,
    Online,
    TimeGrid,
)
from odeopt.engine.journal import BackwardProgress, ForwardProgress
from tests.checkpoint.conftest import Bench, Crash, same

SCHEDULES = {
    "every": lambda store: Every(1, store=store),
    "sparse": lambda store: Every(7, store=store),
    "density": lambda store: Density(4, store=store),
    "graded": lambda store: Graded(5, store=store),
    "binomial": lambda store: Binomial(4, store=store),
    "one slot": lambda store: Binomial(1, store=store),
    "online": lambda store: Online(4, store=store),
    "budget": lambda store: MemoryBudget(200, 300, (store, 300)),  # states of 96 or 288 bytes
}
ADJOINTS = {
    "discrete": odeopt.DiscreteAdjoint,
    "continuous": lambda: odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    "truncated": lambda: odeopt.TruncatedAdjoint(9),
}
COUNTS = (
    "steps", "gradient_evaluations", "hvps", "replayed_steps", "stored_states", "stored_bytes",
    "device_bytes", "host_bytes", "disk_bytes",
)  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def run_through_crashes(folder, points, make, *, seconds=0, **choices):
    """Crash after so many evaluations, once for each point; then run to the end."""
    tasks, steps = choices.pop("tasks", None), choices.pop("steps", 25)
    for limit in (*points, None):
        bench = Bench(steps, tasks, limit)
        try:
            return bench.run(make(Disk(folder, resume=True, seconds=seconds)), **choices)
        except Crash:
            assert limit is not None
    raise AssertionError("unreachable")


@given(
    st.sampled_from(sorted(SCHEDULES)), st.sampled_from(sorted(ADJOINTS)),
    st.lists(st.integers(1, 120), min_size=1, max_size=4), st.sampled_from([None, 3]),
)  # fmt: skip
def test_whenever_it_crashes_the_result_is_the_same(tmp_path, name, adjoint, points, tasks):
    make = SCHEDULES[name]
    expected = Bench(25, tasks).run(make(Disk(tmp_path)), adjoint=ADJOINTS[adjoint]())
    folder = tmp_path / "progress"
    found = run_through_crashes(folder, points, make, tasks=tasks, adjoint=ADJOINTS[adjoint]())
    assert same(found, expected)
    assert all(getattr(found.stats, n) == getattr(expected.stats, n) for n in COUNTS)
    assert names(tmp_path) == []


@pytest.mark.slow
@given(
    st.lists(st.integers(3, 400), min_size=1, max_size=3),
    st.sampled_from(["online", "binomial", "budget"]),
)
def test_an_adaptive_solve_goes_on(tmp_path, points, name):
    choices = {"solver": odeopt.Adaptive(1e-5, 1e-5), "grid": TimeGrid.uniform(4.0, 3)}
    expected = Bench().run(SCHEDULES[name](Disk(tmp_path)), **choices)
    folder = tmp_path / "progress"
    found = run_through_crashes(folder, points, SCHEDULES[name], **choices)
    assert same(found, expected)
    assert found.stats == expected.stats


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("points", [(8, 14), (38, 16)], ids=["forward", "backward"])
def test_two_crashes_in_one_sweep(tmp_path, name, points):
    """States of other tiers come back, and so does the place in the schedule's stream."""
    expected = Bench(25).run(SCHEDULES[name](Disk(tmp_path)))
    found = run_through_crashes(tmp_path / "progress", points, SCHEDULES[name])
    assert same(found, expected)
    assert all(getattr(found.stats, n) == getattr(expected.stats, n) for n in COUNTS)


@pytest.mark.parametrize("name", ["online", "binomial", "graded"])
def test_crashes_before_the_steps_are_known(tmp_path, name):
    choices = {"solver": odeopt.Adaptive(1e-3, 1e-3), "grid": TimeGrid.uniform(4.0, 3)}
    expected = Bench().run(SCHEDULES[name](Disk(tmp_path)), **choices)
    evaluations = expected.stats.gradient_evaluations
    points = (evaluations // 4, evaluations // 2)
    found = run_through_crashes(tmp_path / "progress", points, SCHEDULES[name], **choices)
    assert same(found, expected)
    assert found.stats == expected.stats


@pytest.mark.parametrize(("limit", "kind"), [(12, ForwardProgress), (45, BackwardProgress)])
def test_the_progress_that_was_read_is_let_go(tmp_path, limit, kind):
    """It holds states, which are not to stay alive beside those of the backward sweep."""

    class Counting(Bench):
        held = 0

        def loss(self, params, batch, hparams):
            found = super().loss(params, batch, hparams)
            if self.calls % 10 == 0:  # looking takes a while
                self.held = sum(type(x) is kind for x in gc.get_objects())
            return found

    with suppress(Crash):
        Counting(25, limit=limit).run(Binomial(4, store=Disk(tmp_path, resume=True, seconds=0)))
    gc.collect()  # what the crash has left
    counting = Counting(25)
    counting.run(Binomial(4, store=Disk(tmp_path, resume=True, seconds=60)))
    assert counting.calls > 40
    assert counting.held == 0, "late in the backward sweep"


def test_it_does_not_begin_again(tmp_path):
    """Each attempt makes 30 evaluations, and all together few more than one that is not hurt."""
    whole = Bench(100)
    whole.run(Binomial(5))
    spent = attempts = 0
    while attempts < 100:
        attempts += 1
        bench = Bench(100, limit=30)
        try:
            bench.run(Binomial(5, store=Disk(tmp_path / "at", resume=True, seconds=0)))
        except Crash:
            spent += 30
        else:
            spent += bench.calls
            break
    assert attempts > 4
    assert spent <= whole.calls + 3 * attempts  # two checks and the step that was lost


def test_progress_is_saved_only_so_often(tmp_path):
    folder = tmp_path / "at"
    with pytest.raises(Crash):
        Bench(25, limit=15).run(Binomial(4, store=Disk(folder, resume=True)))
    assert names(folder) == ["solve.progress", "state-000000000", "state-000000009"]
    with pytest.raises(Crash):
        Bench(25, limit=40).run(Binomial(4, store=Disk(folder, resume=True)))
    assert "forward.progress" in names(folder)  # at the end of the forward sweep
    assert "backward.progress" not in names(folder)
    assert same(Bench(25).run(Binomial(4, store=Disk(folder, resume=True))), Bench(25).run(Every()))
    assert names(tmp_path) == []


def test_states_on_disk_are_at_most_twice_the_slots(tmp_path):
    class Watching(Bench):
        most = 0

        def loss(self, params, batch, hparams):
            self.most = max(self.most, len(list(tmp_path.rglob("state-*"))))
            return super().loss(params, batch, hparams)

    for seconds in (0, 0.01, 60):
        watching = Watching(60)
        watching.run(Binomial(5, store=Disk(tmp_path / "at", resume=True, seconds=seconds)))
        assert 5 <= watching.most <= 10


CHANGES = {
    "the initial state": lambda b: b.tweak.update(params={"b": torch.ones(2)}),
    "the batch": lambda b: b.tweak.update(batch=(torch.ones(8, 5), torch.zeros(8, 2))),
    "the hparams": lambda b: b.tweak.update(hparams={"mu": torch.tensor(0.02)}),
    "the field": lambda b: b.tweak.update(field=odeopt.SGD),
    "the grid": lambda b: setattr(b, "steps", 26),
    "what the loss computes": lambda b: setattr(
        b, "loss", lambda p, batch, hp: 2 * Bench.loss(b, p, batch, hp)
    ),
    "the outer loss or its batch": lambda b: b.tweak.update(
        outer_batch=(torch.ones(8, 5), torch.zeros(8, 2))
    ),
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_call_is_refused_with_what_differs(tmp_path, part):
    store = Disk(tmp_path, resume=True, seconds=0)
    with pytest.raises(Crash):
        Bench(25, limit=45).run(Binomial(4, store=store))
    assert "backward.progress" in names(tmp_path)
    other = Bench(25)
    CHANGES[part](other)
    with pytest.raises(InputError, match=f"differs in.*{part}"):
        other.run(Binomial(4, store=store))
    assert same(Bench(25).run(Binomial(4, store=store)), Bench(25).run(Every()))


@pytest.mark.parametrize(("part", "choices"), [
    ("the solver", {"solver": odeopt.RK4()}),
    ("the checkpoints", {"slots": 5}),
    ("the adjoint", {"adjoint": odeopt.TruncatedAdjoint(9)}),
])  # fmt: skip
def test_other_choices_are_refused(tmp_path, part, choices):
    store = Disk(tmp_path, resume=True, seconds=0)
    with pytest.raises(Crash):
        Bench(25, limit=45).run(Binomial(4, store=store))
    schedule = Binomial(choices.pop("slots", 4), store=store)
    with pytest.raises(InputError, match=part):
        Bench(25).run(schedule, **choices)


def test_lost_and_damaged_files_are_named(tmp_path):
    store = Disk(tmp_path, resume=True, seconds=0)
    with pytest.raises(Crash):
        Bench(25, limit=45).run(Binomial(4, store=store))
    (state, *_) = sorted(tmp_path.glob("state-*"))
    content = state.read_bytes()
    state.unlink()
    with pytest.raises(odeopt.StorageError, match=state.name):
        Bench(25).run(Binomial(4, store=store))
    state.write_bytes(content)
    progress = tmp_path / "forward.progress"
    progress.write_bytes(progress.read_bytes()[:-1])
    with pytest.raises(odeopt.StorageError, match=r"forward\.progress"):
        Bench(25).run(Binomial(4, store=store))


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Bench(9).run(Every(store=Disk(tmp_path, resume=True)))
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("choices", [
    {"adjoint": odeopt.FirstOrderAdjoint()}, {"adjoint": odeopt.BacksolveAdjoint()},
])  # fmt: skip
def test_what_cannot_be_resumed_is_refused(tmp_path, choices):
    with pytest.raises(odeopt.CompatibilityError, match="resume"):
        Bench().run(Every(store=Disk(tmp_path, resume=True)), **choices)


@pytest.mark.parametrize("seconds", [-1, "soon", float("nan")])
def test_seconds_are_a_number(tmp_path, seconds):
    with pytest.raises(InputError, match="seconds"):
        Disk(tmp_path, resume=True, seconds=seconds)


SCRIPT = """
import os, sys, torch
sys.path.insert(0, sys.argv[4])
from odeopt.engine.journal import BackwardProgress, ForwardProgress
from tests.checkpoint.conftest import Bench, _leaves
from odeopt import Binomial, Disk, MemoryBudget
torch.set_default_dtype(torch.float64)
limit, kind = int(sys.argv[2]) or None, sys.argv[5]

class Dying(Bench):
    def loss(self, params, batch, hparams):
        if self.calls == limit:
            os._exit(9)
        return super().loss(params, batch, hparams)

store = Disk(sys.argv[1], resume=True, seconds=0)
budget = MemoryBudget(2 * 96, 96, (store, 96))
found = Dying(40).run(budget if kind == "budget" else Binomial(4, store=store))
torch.save(_leaves(found), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binomial", "budget"])
def test_a_killed_process_goes_on(tmp_path, kind):
    root = str(Path(__file__).parents[2])
    output, folder = tmp_path / "result", tmp_path / "at"
    # in the forward sweep, in the backward sweep, and not at all
    for limit, code in ((20, 9), (60, 9), (0, 0)):
        arguments = [str(folder), str(limit), str(output), root, kind]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert (folder / "backward.progress").exists() == (limit == 60)
    expected = Bench(40).run(Every())
    found = torch.load(output, weights_only=True)
    grads = expected.grads
    own = [expected.value, grads.params["w"], grads.params["b"], grads.hparams["mu"], grads.dt]
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=True))
    assert names(folder) == []
