"""Makes a link of each public name in the text of a page: `Binomial(20)` leads to its API page."""

import re

import odeopt
import odeopt.testing

TAG = re.compile(r"(<[^>]*>)")
NAME = re.compile(r"(?:odeopt\.)?(\w+)(?:\(.*\))?")
CLOSED = {"a", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "summary", "autoref"}
"""Elements in which nothing is linked."""


def targets():
    names = {name: f"odeopt.{name}" for name in odeopt.__all__}
    return names | {name: f"odeopt.testing.{name}" for name in odeopt.testing.__all__}


def on_page_content(content, page, config, files):
    """mkdocs calls this with the HTML of each page; mkdocs-autorefs finds where a name is."""
    known, parts, inside = targets(), TAG.split(content), 0
    for i, part in enumerate(parts):
        element = re.match(r"</?(\w+)", part)
        if element and element[1] in CLOSED:
            inside += -1 if part.startswith("</") else 1
        code = part == "<code>" and parts[i + 2 : i + 3] == ["</code>"]
        name = NAME.fullmatch(parts[i + 1]) if code and not inside else None
        if name and name[1] in known:
            parts[i] = f'<autoref identifier="{known[name[1]]}" optional><code>'
            parts[i + 2] = "</code></autoref>"
    return "".join(parts)
