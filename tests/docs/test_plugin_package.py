"""The package in docs/plugin-example, installed from its source as a stranger would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "docs" / "plugin-example"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
ENTRIES = {
    "field": ("sign-flow", "odeopt_signflow.field:SignFlow"),
    "adjoint": ("damped", "odeopt_signflow.adjoint:DampedAdjoint"),
    "method": ("damped-sign-maml", "odeopt_signflow.method:DampedSignMAML"),
}

LOOK_UP = """
import sys, odeopt
assert not any(name.startswith("odeopt_signflow") for name in sys.modules)
assert odeopt.FIELDS.get("sign-flow").__name__ == "SignFlow"
assert odeopt.ADJOINTS.get("damped").__name__ == "DampedAdjoint"
assert odeopt.METHODS.get("damped-sign-maml").__name__ == "DampedSignMAML"
assert isinstance(odeopt.ADJOINTS.example("damped")(), odeopt.ADJOINTS.get("damped"))
print("found")
"""

TRAIN = """
import torch, odeopt
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

def loss(params, batch):
    x, y = batch
    return ((torch.tanh(x @ params["w"]) @ params["v"] - y) ** 2).mean()

def tasks(count):  # y = a sin(x) with an amplitude of each task's own
    x, amplitude = 4 * torch.rand(count, 20, 1) - 2, 1 + torch.rand(count, 1)
    y = amplitude * torch.sin(x[..., 0])
    return (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])

params = {"w": torch.randn(1, 8), "v": 0.3 * torch.randn(8)}
method = odeopt.METHODS.get("damped-sign-maml")(loss, lr=0.02, steps=5)
hparams, held_out = method.init_hparams(params), tasks(20)
before = method.evaluate(params, held_out, hparams).mean().item()
for _ in range(30):
    step = method(params, tasks(5), hparams).grads.params
    params = {name: params[name] - 0.3 * step[name] for name in params}
after = method.evaluate(params, held_out, hparams).mean().item()
print(before, after)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the package was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    quiet = ["-q", "--disable-pip-version-check", "--no-cache-dir"]
    alone = ["--no-deps", "--no-build-isolation", "--target", str(folder)]
    result = run(["-m", "pip", "install", *quiet, *alone, str(PACKAGE)])
    assert result.returncode == 0, result.stderr
    return folder


def run(arguments, installed=None, cwd=None):
    """Python with the installed package, without the tests' own path and settings."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    if installed is not None:
        env["PYTHONPATH"] = str(installed)
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def run_well(arguments, installed, cwd):
    result = run(arguments, installed, cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_command_lists_it_with_its_entries(installed, tmp_path):
    lines = run_well(["-m", "odeopt", "plugins"], installed, tmp_path).splitlines()
    cells = {tuple(re.split(r"\s{2,}", line)) for line in lines}
    assert ("signflow", "odeopt_signflow", "odeopt-signflow", "0.1.0", "loaded") in cells
    joined = "".join("".join(lines).split())  # the last column may be wrapped
    for name, origin in ENTRIES.values():
        assert f"{name}odeopt-signflow{origin}" in joined
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_the_command_shows_its_error_if_it_cannot_be_imported(installed, tmp_path):
    hiding = tmp_path / "odeopt_signflow"
    hiding.mkdir()
    (hiding / "__init__.py").write_text("raise OSError('broken on purpose')\n")
    result = run(["-m", "odeopt", "plugins"], f"{tmp_path}{os.pathsep}{installed}", tmp_path)
    assert result.returncode == 1
    assert "failed: OSError: broken on purpose" in " ".join(result.stdout.split())
    assert "gradient-flow" in result.stdout
    assert "sign-flow" not in result.stdout


@pytest.mark.slow
def test_its_entries_are_found_by_name_without_an_import(installed, tmp_path):
    assert run_well(["-c", LOOK_UP], installed, tmp_path).split() == ["found"]


@pytest.mark.slow
def test_its_entries_pass_the_conformance_suites(installed, tmp_path):
    pick = ["-k", "sign-flow or damped", "-p", "no:cacheprovider"]
    suites = ["-m", "pytest", "--pyargs", "odeopt.testing", "-v", *pick]
    text = run_well(suites, installed, tmp_path)
    for test, (name, _) in zip(("field", "adjoint", "method"), ENTRIES.values(), strict=True):
        assert re.search(rf"test_{test}\[[\w-]*{name}[\w-]*\] PASSED", text), text


@pytest.mark.slow
def test_its_own_tests_pass(installed, tmp_path):
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE)]
    assert re.search(r"^[1-9]\d* passed", run_well(suite, installed, tmp_path), re.MULTILINE)


@pytest.mark.slow
def test_its_method_learns_an_initialisation(installed, tmp_path):
    before, after = map(float, run_well(["-c", TRAIN], installed, tmp_path).split())
    assert after < 0.5 * before


@pytest.mark.slow
def test_its_readme_runs_and_its_links_lead_to_files(installed, tmp_path):
    text = (PACKAGE / "README.md").read_text()
    (block,) = BLOCK.findall(text)
    run_well(["-c", block], installed, tmp_path)
    links = LINK.findall(text)
    assert [link for link in links if not (PACKAGE / link).exists()] == []
