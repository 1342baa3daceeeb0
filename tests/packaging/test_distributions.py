"""The sdist and the wheel; the wheel alone, installed into a clean environment, works."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from support.pages import ROOT, blocks

import odeopt

pytestmark = pytest.mark.slow

LOOK_AROUND = """
import importlib.metadata, importlib.util, pathlib, sys
import odeopt, odeopt_plugins

home = pathlib.Path(sys.prefix).resolve()
for package in (odeopt, odeopt_plugins):
    assert home in pathlib.Path(package.__file__).resolve().parents, package.__file__
assert importlib.util.find_spec("plugins") is None
assert importlib.util.find_spec("benchmarks") is None
assert importlib.metadata.version("odeopt") == odeopt.__version__
points = importlib.metadata.distribution("odeopt").entry_points
assert [point.value for point in points.select(group="odeopt.plugins")] == ["odeopt_plugins"]
assert "a-maml" in odeopt.METHODS.names()
assert odeopt.METHODS.get("a-maml").__module__ == "odeopt_plugins.a_maml"
"""


def run(*command, cwd):
    """Outside the repository, with no path to it; its output."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONHOME", None)
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with an sdist, and a wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """The Python of an environment with the wheel, beside what odeopt depends on."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    own = run(python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    (Path(own.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"odeopt", "odeopt_plugins", f"odeopt-{odeopt.__version__}.dist-info"}
    assert {"odeopt/py.typed", "odeopt_plugins/py.typed"} <= set(names)
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "odeopt").rglob("*.py")}
    assert sources <= set(names)


def test_the_metadata_say_what_pyproject_says(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(archive.read(path).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == odeopt.__version__
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == project["license"]
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(needed) == sorted(project["dependencies"])


def test_the_sdist_holds_what_is_needed_to_test_and_document_it(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "docs/index.md"} <= names
    assert {"tests/public_api.txt", "benchmarks/__main__.py", "docs/figures/replays.svg"} <= names
    linked = {path.name for path in (ROOT / "docs" / "benchmarks").glob("*.png")}
    assert {f"docs/benchmarks/{name}" for name in linked} <= names
    assert not [name for name in names if name.startswith(("results/", "site/"))]


def test_the_installed_wheel_is_found_with_its_entry_point(clean, tmp_path):
    run(clean, "-Ic", LOOK_AROUND, cwd=tmp_path)
    listed = run(clean, "-Im", "odeopt", "plugins", cwd=tmp_path)
    assert "loaded" in listed
    assert "a-maml" in listed


def test_the_first_examples_run_with_the_wheel_alone(clean, tmp_path):
    first = [block.code for block in blocks((ROOT / "README.md").read_text()) if block.runs][:3]
    (tmp_path / "example.py").write_text("\n".join(first))
    assert "gradient_evaluations" in run(clean, "-I", "example.py", cwd=tmp_path)
