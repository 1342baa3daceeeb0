"""The table of torch's insides is that of the sources, and the installed torch has them all."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
from support.pages import DOCS, ROOT

ROW = re.compile(r"^\| `(torch[\w.]+)` \| `([\w./]+)` \|", re.MULTILINE)
TABLE = dict(ROW.findall((DOCS / "torch-interfaces.md").read_text()))
SOURCES = sorted([*(ROOT / "odeopt").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])


def is_private(name):
    parts = name.split(".")
    inside = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] == "torch" and (inside or "experimental" in parts)


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def private_names(source):
    """What a module imports of torch's insides, or reaches through its attributes."""
    found, modules = set(), {"torch": "torch"}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.Assign) or (isinstance(node, ast.AnnAssign) and node.value):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and is_private(dotted(node.value)):
                modules[target.id] = dotted(node.value)
    for node in ast.walk(tree):
        first, _, rest = (
            dotted(node).partition(".") if isinstance(node, ast.Attribute) else ("",) * 3
        )
        if rest and first in modules:
            found.add(f"{modules[first]}.{rest}")
    return {name for name in found if is_private(name)}


def test_a_private_name_is_seen():
    source = "import torch\nf = torch._C._functorch\nf.get_unwrapped(x)\n"
    source += "from torch._guards import tracing\n"
    assert private_names(source) >= {"torch._C._functorch.get_unwrapped", "torch._guards.tracing"}
    assert (
        private_names("import torch\ntorch.nn.Linear(1, 2)\nfrom torch.func import vmap") == set()
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_used_is_in_the_table(path):
    for name in private_names(path.read_text()):
        known = [
            n for n in TABLE if n == name or n.startswith(name + ".") or name.startswith(n + ".")
        ]
        assert known, f"{name} is not in docs/torch-interfaces.md: say why it is needed"
        own = str(path.relative_to(ROOT))
        assert any(own.startswith(TABLE[n]) for n in known), f"{name} is used in {own}, too"


@pytest.mark.parametrize("name", TABLE)
def test_what_is_in_the_table_is_used_and_there(name):
    used = set().union(*(private_names(path.read_text()) for path in SOURCES))
    assert any(n == name or n.startswith(name + ".") for n in used), "nothing uses it any more"
    module, _, rest = name, None, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ImportError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        assert hasattr(found, part), f"this torch has no {name}: see docs/torch-interfaces.md"
        found = getattr(found, part)
