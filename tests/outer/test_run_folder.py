"""The folder of a run: one learner at a time, and what it writes there."""

from __future__ import annotations

import pytest
import torch

from odeopt import InputError, StorageError
from odeopt.outer import OuterLoop, OuterObjective
from odeopt.outer.run_folder import RunFolder
from tests.outer.conftest import make, same


def test_one_learner_at_a_time_runs_in_a_folder(tmp_path):
    refused = []

    def watch(step):
        other = make(tmp_path)
        if step.update == 0:
            assert not other.restore()  # there is none yet
        for call in (lambda: other.fit(1), other.save, *[other.restore][: step.update]):
            with pytest.raises(StorageError, match="in use by another learner"):
                call()
            refused.append(step.update)
        first.save()  # its own is no other

    first = make(tmp_path, callback=watch)
    first.fit(3)
    assert refused == [0, 0, 1, 1, 1, 2, 2, 2]
    assert len(first.history()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]


def test_the_folder_is_free_when_a_run_has_failed(tmp_path):
    def fail(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:  # whose traceback holds the learner
        make(tmp_path, callback=fail).fit(3)
    make(tmp_path).fit(2)
    assert caught.value is not None


def test_learners_that_take_turns_do_not_mix(tmp_path):
    whole, first = make(tmp_path / "whole"), make(tmp_path / "parts")
    whole.fit(6)
    first.fit(2)
    second = make(tmp_path / "parts")
    assert second.restore()
    second.fit(4)
    for call in (lambda: first.fit(6), first.save):
        with pytest.raises(InputError, match="was written by another learner since"):
            call()
    assert first.updates == 2
    assert len(second.history()) == 4
    assert first.restore()
    first.fit(6)
    assert same(first.params, whole.params)
    assert [s.value for s in first.history()] == [s.value for s in whole.history()]


def test_without_a_folder_nothing_can_be_saved():
    learner = make(None)
    learner.fit(2)
    with pytest.raises(InputError, match="no folder to save to: pass folder="):
        learner.save()


def test_metrics_are_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match=r"metrics\.jsonl is a symbolic link"):
        make(tmp_path / "run").fit(1)

    def link(step):
        path = tmp_path / "other" / "metrics.jsonl"
        path.unlink()
        path.symlink_to(tmp_path / "precious")

    with pytest.raises(StorageError, match="is a symbolic link"):
        make(tmp_path / "other", callback=link).fit(2)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_failed_append_is_no_part_of_the_next_line(tmp_path):
    learner = make(tmp_path)
    learner.fit(1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 1, "va')
    learner.fit(3)
    assert [step.update for step in learner.history()] == [0, 1, 2]


def test_a_relative_folder_is_the_one_it_was_when_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    learner = make("run", callback=lambda step: monkeypatch.chdir(tmp_path / "elsewhere"))
    learner.fit(3)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_what_unlocks_lets_others_in_at_once(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.lock()
    lock = folder._lock
    folder.unlock()
    assert not lock.is_held  # though this test still knows it


def test_without_a_folder_the_settings_of_a_run_are_not_asked_for():
    class Objective(OuterObjective):
        def gradient(self, learned, drawn):
            raise NotImplementedError

        def settings(self):
            raise AssertionError("describing a run costs time")

    OuterLoop(Objective(), {"w": torch.zeros(2)})
