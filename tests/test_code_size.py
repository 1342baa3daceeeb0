"""Files have one subject and functions a few lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    p
    for folder in ("odeopt", "plugins", "benchmarks", "tests")
    for p in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_at_most_500_lines_and_its_functions_60(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    long = {n.name: (n.end_lineno or 0) - n.lineno + 1 for n in functions}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}
