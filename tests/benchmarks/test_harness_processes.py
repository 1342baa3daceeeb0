"""Processes that measure: they answer, or it is said why not."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from benchmarks.harness import processes

SAID: list[str] = []


def say(word):
    print("a warning")
    SAID.append(word)
    return {"outcome": "", "said": list(SAID), "threads": torch.get_num_threads()}


def environment(name):
    return {"value": os.environ.get(name)}


def sleep(seconds):
    time.sleep(seconds)
    return {"outcome": ""}


def fail():
    raise ValueError("the reason")


def end(sign):
    os.kill(os.getpid(), sign)


def leave(status):
    os._exit(status)


def test_a_process_stays_and_answers_on_one_thread():
    with processes.Child() as child:
        for said in (["first"], ["first", "time"]):
            answer = child.ask(say, said[-1], limit=60.0)
            assert answer == {"outcome": "", "said": said, "threads": 1}
    assert not SAID, "nothing is shared with this process"


def test_variables_are_those_of_the_process_alone():
    found = processes.run(environment, "ODEOPT_TEST", limit=60.0, variables={"ODEOPT_TEST": "7"})
    assert found == {"value": "7"}
    assert "ODEOPT_TEST" not in os.environ


def test_a_process_that_takes_too_long_is_ended():
    with processes.Child() as child:
        child.ask(sleep, 0.0, limit=60.0)  # it has started
        found = child.ask(sleep, 60.0, limit=0.2)
        assert found == {"outcome": "did not finish", "message": "more than 0.2 seconds"}
        child._process.join(5)
        assert not child._process.is_alive()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGABRT])
def test_a_process_that_is_ended_for_want_of_memory_did_not_fit(sign):
    assert processes.run(end, sign, limit=60.0)["outcome"] == "did not fit"


def test_a_process_that_ends_otherwise_raises():
    with pytest.raises(processes.ChildError, match="leave ended with status 3"):
        processes.run(leave, 3, limit=60.0)


def test_a_function_that_fails_raises_with_its_traceback():
    with pytest.raises(processes.ChildError, match=r"fail failed:\n(.|\n)*ValueError: the reason"):
        processes.run(fail, limit=60.0)
