"""Every Python block of the README and the documentation runs, and relative links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from odeopt.registry import ADJOINTS, CHECKPOINTS, FIELDS, METHODS, SOLVERS, load_plugins

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *TUTORIALS]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def name(path):
    return str(path.relative_to(ROOT))


@pytest.fixture
def registries():
    load_plugins()  # what they register is there before and after
    known = (FIELDS, SOLVERS, ADJOINTS, CHECKPOINTS, METHODS)
    before = [(r, dict(r._entries), dict(r._examples)) for r in known]
    yield
    for registry, entries, examples in before:
        registry._entries, registry._examples = entries, examples


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_blocks_of_a_page_run_in_order(page, registries, capsys):
    torch.set_default_dtype(torch.float32)
    blocks = BLOCK.findall(page.read_text())
    namespace = {"__name__": "__page__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    runs = {"README.md", "choosing.md", "extending.md", "migration.md"}
    assert bool(blocks) is (page.name in runs or page in TUTORIALS)


def test_the_first_tutorial_is_short():
    blocks = BLOCK.findall((ROOT / "docs" / "tutorials" / "meta-learning.md").read_text())
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) < 40


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files(page):
    targets = LINK.findall(page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
