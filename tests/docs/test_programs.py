"""The programs in `examples/` run, and come to what they say they do."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.pages import ROOT

FOLDER = ROOT / "examples"


def output(name):
    found = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_each_program_is_tested():
    tested = {"data_weights", "distillation", "influence", "learned_schedule", "many_processes",
              "maml_sinusoids", "new_optimizer"}  # fmt: skip
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["maml_sinusoids", "learned_schedule", "distillation", "many_processes"]
)
def test_what_is_learned_lowers_the_loss(name):
    before, after, *_ = numbers(output(name))
    assert after < 0.7 * before


@pytest.mark.slow
def test_wrong_labels_are_doubted():
    last = output("data_weights").splitlines()[-1]
    wrong, right = map(int, re.findall(r"(\d+)% of the", last))
    assert wrong > 80
    assert right < 40


@pytest.mark.slow
def test_the_wrong_example_does_most_harm():
    text = output("influence")
    assert "shape of the effects: [20, 40]" in text
    assert text.endswith("does most harm: 7\n")


@pytest.mark.slow
def test_an_optimizer_of_ones_own_has_a_gradient():
    text = output("new_optimizer")
    assert text.startswith("Result(value=0.00")
    assert numbers(text)[-1] < 0
