"""The pages of the documentation, and the code in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "src" not in p.parts)]
FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<indent>[ ]*)(?P<ticks>```+)(?P<language>[^\n`]*)\n"
    r"(?P<code>.*?)^(?P=indent)(?P=ticks)[ ]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A code block; `reason` says why it is not run, None if it must be."""

    language: str
    code: str
    reason: str | None

    @property
    def runs(self) -> bool:
        return self.language == "python" and self.reason is None


def blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order."""
    return [
        Block(found["language"].strip(), textwrap.dedent(found["code"]), found["reason"])
        for found in FENCE.finditer(text)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
