"""Code in the README and on every page runs, or says why not; relative links lead to files."""

from __future__ import annotations

import re

import pytest
import torch
from support.pages import DOCS, FENCE, PAGES, ROOT, blocks, name

from odeopt.registry import ADJOINTS, CHECKPOINTS, FIELDS, METHODS, SOLVERS, load_plugins

LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
ELSEWHERE = {DOCS / "plugin-example" / "README.md"}
"""Needs its package: run by test_plugin_package.py."""
RUNNING = [
    page
    for page in PAGES
    if page not in ELSEWHERE and any(block.runs for block in blocks(page.read_text()))
]


@pytest.fixture
def registries():
    load_plugins()  # what they register is there before and after
    known = (FIELDS, SOLVERS, ADJOINTS, CHECKPOINTS, METHODS)
    before = [(r, dict(r._entries)) for r in known]
    yield
    for registry, entries in before:
        registry._entries = entries


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_the_blocks_of_a_page_run_in_order(page, registries, capsys):
    torch.set_default_dtype(torch.float32)
    namespace = {"__name__": "__page__"}
    running = [block for block in blocks(page.read_text()) if block.runs]
    assert running, "a page without one is not in RUNNING"
    for number, block in enumerate(running):
        exec(compile(block.code, f"{page.name}, running block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why(page):
    silent = [b.code for b in blocks(page.read_text()) if not b.runs and not b.reason]
    assert silent == [], "write <!-- not run: the reason --> in the line before the block"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_fence_is_found(page):
    text = page.read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))


def test_the_pages_that_teach_have_code_that_runs():
    tutorials = sorted((DOCS / "tutorials").glob("*.md"))
    guides = [DOCS / f"{guide}.md" for guide in ("choosing", "extending", "migration")]
    assert {ROOT / "README.md", *tutorials, *guides} <= set(RUNNING)


def test_the_first_meta_learning_tutorial_is_short():
    found = blocks((DOCS / "tutorials" / "meta-learning.md").read_text())
    lines = [line for block in found if block.runs for line in block.code.splitlines()]
    assert len([line for line in lines if line.strip()]) < 40


@pytest.mark.parametrize(("text", "expected"), [
    ("```python\n1\n```\n", [("python", True)]),
    ("<!-- not run: needs a GPU -->\n```python\n1\n```\n", [("python", False)]),
    ("- a\n\n  ```python\n  1\n  ```\n\n```bash\nls\n```\n", [("python", True), ("bash", False)]),
])  # fmt: skip
def test_blocks_are_told_apart(text, expected):
    assert [(block.language, block.runs) for block in blocks(text)] == expected


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_relative_links_lead_to_files(page):
    targets = LINK.findall(page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
