"""Shelves on their own: what is put there comes back, or an error says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt import Device, Disk, Host, InputError, StorageError
from odeopt.checkpoint.store.solve_files import Label, read_state, state_file, write_state
from odeopt.tools.packing import pack

CPU = torch.device("cpu")
LABEL = Label("a solve", 3)


@st.composite
def states(draw):
    """Tensors of any layout in memory: transposed, repeated, strided, empty."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    state = torch.randn(*sizes, dtype=torch.float64).to(dtype)
    kind = draw(st.sampled_from(["plain", "transposed", "repeated", "strided"]))
    if kind == "transposed":
        return state.permute(*reversed(range(state.ndim)))
    if kind == "repeated":
        return state.expand(draw(st.integers(1, 3)), *state.shape)
    if kind == "strided":
        return state.repeat_interleave(2, dim=-1)[..., ::2]
    return state


@given(states())
def test_a_state_survives_packing_with_its_order_in_memory(state):
    block, packing = pack(state)
    assert block.is_contiguous()
    back = packing.unpack(block)
    assert back.shape == state.shape
    assert torch.equal(back, state)
    order = sorted(range(state.ndim), key=lambda d: -state.stride(d))
    if state.numel() and all(size > 1 for size in state.shape):
        assert sorted(range(back.ndim), key=lambda d: -back.stride(d)) == order
        assert [s == 0 for s in back.stride()] == [s == 0 for s in state.stride()]


@given(states())
def test_a_state_survives_a_file(tmp_path, state):
    path = tmp_path / "state"
    write_state(path, state, LABEL)
    back = read_state(path, CPU, LABEL)
    assert back.dtype == state.dtype
    assert torch.equal(back, state)


def test_not_a_number_survives_a_file_bit_by_bit(tmp_path):
    state = torch.tensor([float("nan"), -0.0, float("inf"), 5e-324])
    write_state(tmp_path / "state", state, LABEL)
    back = read_state(tmp_path / "state", CPU, LABEL)
    assert torch.equal(back.view(torch.int64), state.view(torch.int64))


@given(st.data())
def test_a_changed_file_is_noticed(tmp_path, data):
    path = tmp_path / "state"
    write_state(path, torch.arange(6.0), LABEL)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not what was written"):
        read_state(path, CPU, LABEL)


def test_a_file_that_vanished_is_named(tmp_path):
    shelf = Disk(tmp_path).open()
    shelf.put(3, torch.ones(2))
    (found,) = tmp_path.rglob("state-*")
    found.unlink()
    with pytest.raises(StorageError, match=str(found)):
        shelf.get(3)


def test_a_file_that_holds_another_state_is_noticed(tmp_path):
    shelf, other = Disk(tmp_path).open(), Disk(tmp_path).open()
    for index in (3, 4):
        shelf.put(index, torch.full((2,), float(index)))
    other.put(3, torch.zeros(2))
    third, fourth = (state_file(shelf._folder, index) for index in (3, 4))
    foreign = state_file(other._folder, 3)
    content = third.read_bytes()
    third.write_bytes(fourth.read_bytes())
    with pytest.raises(StorageError, match="holds a state number 4; expected number 3"):
        shelf.get(3)
    third.write_bytes(foreign.read_bytes())
    with pytest.raises(StorageError, match="holds a state of another solve; expected number 3"):
        shelf.get(3)
    third.write_bytes(content)
    assert shelf.get(3).tolist() == [3, 3]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written to"):
        Disk(tmp_path / "file" / "below").open()


def test_a_state_that_cannot_be_written_says_so(tmp_path):
    shelf = Disk(tmp_path).open()
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written to"):
        shelf.put(0, torch.ones(2))


@pytest.mark.parametrize("path", [None, 3, ""])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(InputError, match="path"):
        Disk(path)


@pytest.mark.parametrize("make", [lambda path: Device(), lambda path: Host(), Disk])
def test_shelves_keep_by_index(tmp_path, make):
    shelf = make(tmp_path).open()
    shelf.put(0, torch.zeros(2))
    shelf.put(7, torch.ones(2))
    shelf.put(0, torch.full((2,), 5.0))
    shelf.prefetch(7)
    shelf.prefetch(99)
    assert shelf.get(7).tolist() == [1, 1]
    assert shelf.get(0).tolist() == [5, 5]
    shelf.drop(0)
    shelf.close(done=True)
    assert list(tmp_path.iterdir()) == []


def test_the_host_tier_copies_nothing_on_a_cpu():
    shelf, state = Host().open(), torch.ones(2)
    shelf.put(0, state)
    assert shelf.get(0) is state


def test_a_fork_that_ends_leaves_the_files_of_its_parent(tmp_path):
    script = (
        "import os, sys, torch, odeopt\n"
        "shelf = odeopt.Disk(sys.argv[1]).open()\n"
        "shelf.put(0, torch.ones(2))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "print(shelf.get(0).tolist())\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "[1.0, 1.0]"
    assert list(tmp_path.iterdir()) == []


ABANDONING = """
import sys, time, torch, odeopt
shelf = odeopt.Disk(sys.argv[1]).open()
shelf.put(0, torch.ones(2))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_folder_of_a_process_that_was_ended_goes_with_the_next_solve(tmp_path):
    pytest.importorskip("fcntl")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ABANDONING, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        (folder,) = tmp_path.iterdir()
        alive = Disk(tmp_path).open()
        assert (folder / "state-000000000").exists()  # while its owner lives
        process.terminate()
    assert folder.exists()
    other = Disk(tmp_path).open()
    assert not folder.exists()
    assert sorted(tmp_path.iterdir()) == sorted([alive._folder, other._folder])


def test_only_folders_and_files_of_a_solve_are_removed(tmp_path):
    pytest.importorskip("fcntl")
    kept = {
        "odeopt-notes": ["solve.lock"], "odeopt-00000000x": ["solve.lock"], "other": ["solve.lock"],
        "odeopt-no_lock_": ["state-000000000"], "odeopt-private": ["solve.lock", "notes.txt"],
    }  # fmt: skip
    gone = {"odeopt-abcd_123": ["solve.lock", "state-000000000", "state-000000012"],
            "odeopt-emptyone": []}  # fmt: skip
    for name, files in {**kept, **gone}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    (tmp_path / "odeopt-linked__").symlink_to(tmp_path / "other")
    Disk(tmp_path).open().close(done=True)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "odeopt-linked__"}
    assert (tmp_path / "odeopt-private" / "notes.txt").exists()
    assert (tmp_path / "other" / "solve.lock").exists()


def test_a_solve_leaves_files_of_others_in_its_folder(tmp_path):
    shelf = Disk(tmp_path).open()
    shelf.put(0, torch.ones(2))
    (shelf._folder / "notes.txt").write_text("mine")
    shelf.close(done=True)
    assert [path.name for path in shelf._folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_file_of_a_state_that_is_dropped_goes_at_once(tmp_path, resume):
    shelf = Disk(tmp_path, resume=resume).open()
    for index in (0, 1):
        shelf.put(index, torch.ones(2))
    shelf.drop(0)
    assert [path.name for path in tmp_path.rglob("state-*")] == ["state-000000001"]
    shelf.close(done=True)
    assert not list(tmp_path.rglob("state-*"))


@pytest.mark.parametrize("make", [Device, Host])
def test_what_is_closed_is_let_go(make):
    shelf = make().open()
    shelf.put(0, torch.ones(3))
    shelf.close(True)
    with pytest.raises(KeyError):
        shelf.get(0)


@pytest.mark.parametrize("make", [Device, Host])
def test_what_is_dropped_is_let_go(make):
    shelf = make().open()
    states = [torch.ones(3), torch.ones(3)]
    alive = [weakref.ref(state) for state in states]
    for index, state in enumerate(states):
        shelf.put(index, state)
    del states, state
    shelf.drop(0)
    assert [one() is None for one in alive] == [True, False]
