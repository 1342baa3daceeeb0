"""A worker that is lost stops the run, which goes on from its checkpoint."""

from __future__ import annotations

import re
import signal

import pytest
import torch
from support import distributed as cases

import odeopt


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """For a killed worker and a hanging one: the run's folder, and what the other one said."""
    folders = [tmp_path_factory.mktemp(name) for name in ("killed", "hangs")]
    killed = cases.start("lost", folders[0], count=3, TIMEOUT="60")
    hangs = cases.start("lost", folders[1], TIMEOUT="8", HANGS="1")
    (text, _, third), codes = cases.finish(killed)
    (said,), _ = cases.finish(hangs[:1])
    cases.stop(hangs)
    assert codes == [0, -signal.SIGKILL, 0], text + third
    return {"killed": (folders[0], text), "hangs": (folders[1], said), "third": third}


@pytest.mark.parametrize(("name", "bound"), [("killed", 10.0), ("hangs", 30.0)])
def test_the_others_are_told_soon_who_it_was(lost, name, bound):
    text = lost[name][1].strip().splitlines()[-1]
    seconds, message = text.split(" ", 1)
    assert float(seconds) < bound
    said = r"worker 1 of \d did not answer worker 0 in 'the tasks': it was killed"
    assert re.match(said, message)
    assert "Start the program again with torchrun" in message
    assert "restore()" in message


def test_who_was_left_alone_as_well_is_not_blamed(lost):
    said = lost["third"].strip().splitlines()[-1].split(" ", 1)[1]
    assert said.startswith("worker 1 of 3 did not answer worker 2 in 'the tasks': it was killed")


@pytest.mark.parametrize("name", ["killed", "hangs"])
def test_the_run_goes_on_with_one_worker(lost, name, tmp_path):
    torch.set_default_dtype(torch.float64)
    run = cases.learner(folder=lost[name][0])
    assert run.restore()
    assert run.updates == 2
    assert len(run.history()) == 2
    run.fit(6)
    expected = cases.learner(folder=tmp_path)
    expected.fit(6)
    for leaf, other in zip(run.params.values(), expected.params.values(), strict=True):
        torch.testing.assert_close(leaf, other, rtol=1e-11, atol=1e-13)


def test_a_worker_that_left_with_an_error_of_its_own_is_named_with_it(tmp_path):
    texts, codes = cases.finish(cases.start("leaving", tmp_path))
    assert codes == [0, 1], texts[0]
    assert (tmp_path / "said").read_text().startswith(
        "worker 1 of 2 did not answer worker 0 in 'the data': it left after FileNotFoundError:"
        " data.pt is not there. Start"
    )  # fmt: skip


def test_a_group_that_cannot_be_joined(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(odeopt.WorkerError, match=r"cannot be joined: .*torchrun --standalone"):
        odeopt.Workers()


@pytest.mark.parametrize("timeout", [0, -1.0, True])
def test_a_timeout_is_a_positive_number(timeout):
    with pytest.raises(odeopt.InputError, match="timeout is"):
        odeopt.Workers(timeout=timeout)
