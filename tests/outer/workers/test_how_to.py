"""The programs of docs/many-processes.md, as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from support.distributed import ROOT

PAGE = (ROOT / "docs" / "many-processes.md").read_text()
BLOCK = re.compile(r'^```python title="(.*?)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
PROGRAMS = dict(BLOCK.findall(PAGE))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(arguments, folder):
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loss(text):
    return float(text.split()[-1])


def test_every_block_is_a_program():
    assert set(PROGRAMS) == {"waves.py", "seconds.py"}
    assert PAGE.count("```python") == 2


def test_two_processes_learn_what_one_learns_and_one_goes_on(tmp_path, monkeypatch, capsys):
    torch.set_default_dtype(torch.float32)  # as in a program of its own
    program = PROGRAMS["waves.py"].replace("fit(40)", "fit(8)")
    (tmp_path / "waves.py").write_text(program)
    found = run([*TORCHRUN, "waves.py"], tmp_path)
    assert found.startswith("2 workers, validation loss ")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    exec(compile(program, "waves.py", "exec"), {"__name__": "__main__"})
    assert loss(capsys.readouterr().out) == pytest.approx(loss(found), rel=1e-4)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "waves.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == ""  # everything is done
    longer = program.replace("fit(8)", "fit(10)")
    exec(compile(longer, "waves.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("1 workers, validation loss ")


def test_the_functional_program_runs(capsys):
    exec(compile(PROGRAMS["seconds.py"].replace("steps=100", "steps=10"), "seconds.py", "exec"), {})
    assert re.fullmatch(r"1 workers: [0-9.]+ s, norm [0-9.]+\n", capsys.readouterr().out)
