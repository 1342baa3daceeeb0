"""How much memory a process may still take, and how much a graph holds."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch

from odeopt.tools import memory
from odeopt.tools.memory import GraphSize, free_memory

CPU = torch.device("cpu")
MIB = 2**20
UNLIMITED = 2**62
LIMITED = """
import json, resource
import psutil, torch
from odeopt.tools.memory import free_memory

torch.set_num_threads(1)  # the stacks of others count as well
found = {}
for name, field in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    used = getattr(psutil.Process().memory_info(), field)
    resource.setrlimit(kind, (used + 2**26, hard))
    found[name] = [free_memory(torch.device("cpu"))]
    block = torch.ones(2**22)  # 16 MiB
    found[name].append(free_memory(torch.device("cpu")))
    del block
    resource.setrlimit(kind, (hard, hard))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def left_in_a_process():
    """What is free in a process with 64 MiB left, and when it has taken 16 more, by limit."""
    if not hasattr(psutil, "RLIMIT_DATA"):
        pytest.skip("this system has no such limits")
    child = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(child.stdout)


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process(name, left_in_a_process):
    before, after = left_in_a_process[name]
    assert 56 * MIB <= before <= 64 * MIB
    assert 12 * MIB <= before - after <= 20 * MIB


class TestControlGroups:
    """The files of version 2, in a folder of the test."""

    @pytest.fixture(autouse=True)
    def root(self, tmp_path, monkeypatch):
        """The folder of all groups; the process is in user/job, and there is no other limit."""
        monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
        monkeypatch.setattr(memory, "_left_by_limits", list)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
        (tmp_path / "own").write_text("0::/user/job\n")
        return tmp_path / "cgroup"

    def group(self, folder, limit, used, inactive=None):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        stat = "anon 5\nfile 7\n" + ("" if inactive is None else f"inactive_file {inactive}\n")
        (folder / "memory.stat").write_text(stat)

    def test_none_leaves_what_the_system_has(self):
        assert free_memory(CPU) == 10**6

    def test_no_file_that_names_the_group(self, root):
        (root.parent / "own").unlink()
        self.group(root, 50, 0)
        assert free_memory(CPU) == 10**6

    def test_its_limit_less_what_it_uses(self, root):
        self.group(root / "user/job", 5000, 1200)
        assert free_memory(CPU) == 3800

    def test_files_that_the_system_can_forget_are_free(self, root):
        self.group(root / "user/job", 5000, 4000, inactive=600)
        assert free_memory(CPU) == 1600

    def test_the_least_of_the_groups_around_it(self, root):
        self.group(root / "user/job", 5000, 0)
        self.group(root / "user", 8000, 6000)
        assert free_memory(CPU) == 2000
        self.group(root, 9000, 8500)
        assert free_memory(CPU) == 500

    def test_no_limit_is_written_as_max(self, root):
        self.group(root / "user/job", "max", 900)
        assert free_memory(CPU) == 10**6
        self.group(root / "user", 3000, 900)
        assert free_memory(CPU) == 2100

    def test_the_system_may_have_less(self, root):
        self.group(root / "user/job", 10**9, 0)
        assert free_memory(CPU) == 10**6

    def test_it_is_never_negative(self, root):
        self.group(root / "user/job", 100, 900)
        assert free_memory(CPU) == 0

    @pytest.mark.parametrize("own", ["0::/\n", "4:memory:/other\n1:name=systemd:/\n0::/\n"])
    def test_a_process_that_sees_its_group_as_the_root(self, root, own):
        (root.parent / "own").write_text(own)
        self.group(root, 700, 100)
        self.group(root / "user/job", 50, 0)
        assert free_memory(CPU) == 600

    def test_the_older_version_is_left_out(self, root):
        (root.parent / "own").write_text("4:memory:/user/job\n")
        self.group(root / "memory/user/job", 50, 0)
        assert free_memory(CPU) == 10**6

    def test_a_limit_of_the_process_beside_it(self, root, monkeypatch):
        self.group(root / "user/job", 5000, 0)
        monkeypatch.setattr(memory, "_left_by_limits", lambda: iter([4000]))
        assert free_memory(CPU) == 4000
        monkeypatch.setattr(memory, "_left_by_limits", lambda: iter([-4000]))
        assert free_memory(CPU) == 0


def test_on_cuda_what_torch_has_reserved_and_not_used_is_free(monkeypatch):
    asked = []

    def answer(number):
        return lambda device: asked.append(device) or number

    monkeypatch.setattr(torch.cuda, "mem_get_info", answer((1000, 5000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", answer(300))
    monkeypatch.setattr(torch.cuda, "memory_allocated", answer(120))
    device = torch.device("cuda", 1)
    assert free_memory(device) == 1180
    assert asked == [device] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_tensor_takes_what_it_has():
    device = torch.device("cuda", 0)
    block = torch.ones(2**24, device=device)
    before = free_memory(device)
    again = block.clone()
    assert before - free_memory(device) == again.untyped_storage().nbytes()


class Held:
    """Something that a graph holds."""


class TestGraphSize:
    """The tensors that autograd saves."""

    def leaf(self, size=10):
        return torch.linspace(0.1, 1, size, requires_grad=True)

    def test_the_bytes_of_a_known_graph(self):
        x = self.leaf()
        size = GraphSize([])
        with size:
            assert size.nbytes == 0
            x.sin().exp()  # sin keeps its argument, exp its result
        assert size.nbytes == 2 * 10 * 8

    def test_shared_tensors_do_not_count(self):
        x = self.leaf()
        size = GraphSize([x.detach()])
        with size:
            x.sin().exp()
        assert size.nbytes == 10 * 8

    def test_views_of_one_storage_count_once_and_as_a_whole(self):
        x, base = self.leaf(), torch.ones(100)
        size = GraphSize([])
        with size:
            (x * base[:10]).sum() + (x * base[50:60]).sum()
        assert size.nbytes == 100 * 8
        size = GraphSize([base[20:30]])
        with size:
            (x * base[:10]).sum() + (x * base[50:60]).sum()
        assert size.nbytes == 0

    def test_what_is_made_outside_does_not_count(self):
        x = self.leaf()
        size = GraphSize([])
        with size:
            pass
        x.sin()
        assert size.nbytes == 0

    def test_nothing_is_noted_after_an_error(self):
        x = self.leaf()
        size = GraphSize([])
        with pytest.raises(ZeroDivisionError), size:
            raise ZeroDivisionError
        x.sin()
        assert size.nbytes == 0

    def derivatives(self, block):
        """The first and the second derivative of a function that is evaluated in a block."""
        x = self.leaf()
        with block:
            inner = (x.exp() * x).tanh()  # these keep arguments and results, leaves among them
            value = (inner * inner.exp()).sum() + x.prod()
        first = torch.autograd.grad(value, x, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    def test_derivatives_are_the_same_after_it(self):
        plain = self.derivatives(torch.enable_grad())
        measured = self.derivatives(GraphSize([]))
        assert all(map(torch.equal, measured, plain))

    def test_a_gradient_taken_inside_can_be_differentiated_outside(self):
        def second(block):
            x = self.leaf()
            with block:
                slope = torch.autograd.grad((x.exp() * x).sum(), x, create_graph=True)[0]
            return torch.autograd.grad(slope.square().sum(), x)[0]

        assert torch.equal(second(GraphSize([])), second(torch.enable_grad()))

    def test_the_graph_goes_with_its_end(self):
        x = self.leaf()
        gc.collect()
        gc.disable()
        try:
            with GraphSize([]):
                end = x.exp()  # a result that its own graph keeps
            end.grad_fn.metadata["held"] = held = Held()
            seen = weakref.ref(held)
            del held
            assert seen() is not None
            del end
            assert seen() is None
        finally:
            gc.enable()
