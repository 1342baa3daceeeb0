"""The folder of a solve that can be resumed: one solve at a time, and only its own files."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from odeopt import Binomial, CompatibilityError, Disk, Every, InputError, MemoryBudget, StorageError
from odeopt.checkpoint.store import solve_folder
from odeopt.checkpoint.store.solve_files import states
from odeopt.checkpoint.store.solve_folder import ResumableShelf, SolveFolder
from tests.checkpoint.conftest import Bench, Crash, same

TEMPORARY = ".forward.progress.0123456789abcdef.tmp"


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def interrupt(schedule, limit=45, kind=Bench, **changes):
    """Leave a solve behind that has come into its backward sweep."""
    bench = kind(25, limit=limit)
    bench.tweak.update(changes)
    with pytest.raises(Crash):
        bench.run(schedule)


def test_a_second_solve_in_the_folder_is_refused_while_the_first_runs(tmp_path):
    store = Disk(tmp_path / "at", resume=True, seconds=0)

    class Nesting(Bench):
        seen = 0

        def loss(self, params, batch, hparams):
            if self.calls in (20, 70):  # in the forward and in the backward sweep
                with pytest.raises(StorageError, match="at is in use by another solve"):
                    store.open()
                self.seen += 1
            return super().loss(params, batch, hparams)

    nesting = Nesting(40)
    found = nesting.run(Every(1, store=store))
    assert nesting.seen == 2
    assert same(found, Bench(40).run(Every()))
    assert names(tmp_path) == []
    other = store.open()
    with pytest.raises(StorageError, match="Wait until it has ended"):
        Bench(40).run(Every(1, store=store))
    other.close(done=True)
    assert same(Bench(40).run(Every(1, store=store)), found)


@pytest.mark.parametrize("limit", [20, 45])
def test_the_folder_is_free_when_a_solve_has_failed(tmp_path, limit):
    schedule = Every(1, store=Disk(tmp_path, resume=True, seconds=0))
    bench = Bench(25, limit=limit)
    with pytest.raises(Crash) as caught:  # whose traceback holds everything
        bench.run(schedule)
    found = Bench(25).run(schedule)
    assert same(found, Bench(25).run(Every()))
    assert caught.value is not None


def test_which_solve_it_is_is_written_before_its_first_step(tmp_path):
    schedule = Every(1, store=Disk(tmp_path, resume=True))  # nothing is saved in the first minute
    interrupt(schedule, limit=5)
    with pytest.raises(InputError, match="differs in the grid"):
        Bench(26).run(schedule)
    assert same(Bench(25).run(schedule), Bench(25).run(Every()))


def test_states_that_no_progress_needs_are_removed(tmp_path):
    folder = SolveFolder(tmp_path, {"grid": "x"})
    store = ResumableShelf(folder)
    for index in range(4):
        store.put(index, torch.ones(2))
    folder.remove_states(but=[1, 3])
    assert sorted(states(tmp_path)) == [1, 3]


def test_a_state_in_the_place_of_another_is_refused(tmp_path):
    schedule = Every(1, store=Disk(tmp_path / "at", resume=True, seconds=0))
    interrupt(schedule)
    one, other = (tmp_path / "at" / f"state-00000000{index}" for index in (3, 7))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    with pytest.raises(StorageError, match="holds a state number 3; expected number 7"):
        Bench(25).run(schedule)
    one.write_bytes(content[0])
    shutil.copytree(tmp_path / "at", tmp_path / "foreign")
    foreign = Every(1, store=Disk(tmp_path / "other", resume=True, seconds=0))
    interrupt(foreign, params={"b": torch.ones(2)})
    shutil.copy(tmp_path / "other" / other.name, other)
    with pytest.raises(StorageError, match="holds a state of another solve"):
        Bench(25).run(schedule)
    shutil.copy(tmp_path / "other" / "forward.progress", tmp_path / "at")
    with pytest.raises(StorageError, match=r"forward\.progress is of another solve"):
        Bench(25).run(schedule)


@pytest.mark.parametrize("schedule", [Every, lambda store: Binomial(3, store=store)])
@pytest.mark.parametrize("change", ["lost", "another"])
def test_backward_progress_needs_its_forward_progress(tmp_path, schedule, change):
    schedule = schedule(store=Disk(tmp_path, resume=True, seconds=0))
    forward = tmp_path / "forward.progress"
    interrupt(schedule, limit=20)
    early = forward.read_bytes()
    interrupt(schedule, limit=30)
    assert "backward.progress" in names(tmp_path)
    forward.unlink()
    if change == "another":
        forward.write_bytes(early)
    with pytest.raises(StorageError, match=r"backward\.progress goes with another forward"):
        Bench(25).run(schedule)


def test_files_without_a_root_are_what_is_left_of_a_solve_that_has_ended(tmp_path):
    schedule = Every(1, store=Disk(tmp_path, resume=True, seconds=0))
    interrupt(schedule)
    (tmp_path / "solve.progress").unlink()
    (tmp_path / "forward.progress").unlink()
    whole = Bench(26)
    found = whole.run(schedule)  # another one: nothing is in its way
    assert same(found, Bench(26).run(Every()))
    assert names(tmp_path) == []


class Killed(BaseException):
    """In place of a kill between two system calls."""


@pytest.mark.parametrize("point", range(5))
def test_a_kill_while_the_files_are_removed_leads_to_a_fresh_start(tmp_path, monkeypatch, point):
    schedule = Binomial(4, store=Disk(tmp_path, resume=True, seconds=0))
    real, removed = Path.unlink, []

    def unlink(path, missing_ok=False):
        if removed or (path.name == "solve.progress" and path.exists()):
            if len(removed) == point:
                raise Killed
            removed.append(path)
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Killed):
        Bench(25).run(schedule)
    monkeypatch.undo()
    assert same(Bench(25).run(schedule), Bench(25).run(Every()))
    assert names(tmp_path) == []


def test_only_files_of_a_solve_are_touched(tmp_path):
    folder = tmp_path / "at"
    (folder / "state-backups").mkdir(parents=True)
    others = [
        "state-of-the-art.md", "state-machine.py", "x.progress", "state-1", ".state-1.tmp",
        "state-000000003x", ".notes.0123456789abcdef.tmp", "backward.progress.old",
    ]  # fmt: skip
    for name in others:
        (folder / name).write_text("mine")
    (folder / "state-000000777").symlink_to(folder / "x.progress")
    (folder / "state-000000778").mkdir()
    ours = ["state-000000999", TEMPORARY, "backward.progress"]
    for name in ours:  # as a solve that was killed in the end has left them
        (folder / name).write_text("ours")
    schedule = Every(1, store=Disk(folder, resume=True, seconds=0))
    interrupt(schedule)
    assert same(Bench(25).run(schedule), Bench(25).run(Every()))
    kept = [*others, "state-backups", "state-000000777", "state-000000778"]
    assert names(folder) == sorted(kept)
    assert (folder / "x.progress").read_text() == "mine"


def test_a_relative_folder_is_the_one_it_was_when_it_was_given(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    schedule, plain = Every(1, store=Disk("at", resume=True, seconds=0)), Disk("plain")
    monkeypatch.chdir(second)

    class Moving(Bench):
        def loss(self, params, batch, hparams):
            monkeypatch.chdir((first, second)[self.calls % 2])
            return super().loss(params, batch, hparams)

    interrupt(schedule, kind=Moving)
    assert "forward.progress" in names(first / "at")
    monkeypatch.chdir(second)
    assert same(Moving(25).run(schedule), Bench(25).run(Every()))
    assert same(Moving(25).run(Every(1, store=plain)), Bench(25).run(Every()))
    assert names(second) == []
    assert names(first) == ["plain"]


def test_a_state_that_is_kept_elsewhere_is_copied_once(tmp_path, monkeypatch):
    written, real = Counter(), solve_folder.write_state

    def count(path, state, label):
        written[label.number] += 1
        real(path, state, label)

    monkeypatch.setattr(solve_folder, "write_state", count)
    disk = Disk(tmp_path, resume=True, seconds=0)
    found = Bench(25).run(MemoryBudget(5 * 96, 5 * 96, (disk, "1MiB")))
    assert found.stats.replayed_steps == 0
    assert written == Counter(range(24))
    assert (found.stats.device_bytes, found.stats.disk_bytes) == (5 * 96, 14 * 96)


def test_two_folders_are_refused(tmp_path):
    class Twice(MemoryBudget):
        def __init__(self):
            super().__init__("1MiB", disk=(Disk(tmp_path / "a", resume=True), "1MiB"))
            self.tiers = (Disk(tmp_path / "b", resume=True), self.tiers[1])

    with pytest.raises(CompatibilityError, match="two tiers are Disk"):
        Bench().run(Twice())
