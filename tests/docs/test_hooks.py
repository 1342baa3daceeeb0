"""What happens to a page while the site is built; needs the extra `docs`."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from support.pages import DOCS

exceptions = pytest.importorskip("mkdocs.exceptions", reason="the extra docs is not installed")
PAGE = SimpleNamespace(file=SimpleNamespace(src_path="page.md"))


def hook(name):
    """The hook in docs/hooks with that name, as mkdocs imports it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda content: module.on_page_content(content, page=PAGE, config=None, files=None)


def test_an_equation_becomes_mathml():
    found = hook("maths")('<p><span class="arithmatex">\\(a &lt; b\\)</span></p>')
    assert found.startswith("<p><math>")
    assert "<mo>&lt;</mo>" in found
    assert "arithmatex" not in found


def test_a_displayed_equation_stands_by_itself():
    found = hook("maths")('<div class="arithmatex">\\[\n\\int_0^T f\\,dt\n\\]</div>')
    assert found.startswith('<div class="equation"><math display="block"')


def test_an_equation_that_cannot_be_read_stops_the_build():
    with pytest.raises(exceptions.PluginError, match=r"page\.md: cannot set \$\\nosuchcommand"):
        hook("maths")('<span class="arithmatex">\\(\\nosuchcommand{x}\\)</span>')


@pytest.mark.parametrize(("code", "name"), [
    ("Binomial", "odeopt.Binomial"), ("odeopt.Binomial(20)", "odeopt.Binomial"),
    ("check_field", "odeopt.testing.check_field"),
])  # fmt: skip
def test_a_public_name_becomes_a_link(code, name):
    found = hook("links")(f"<p>use <code>{code}</code>.</p>")
    link = f'<autoref identifier="{name}" optional><code>{code}</code></autoref>'
    assert found == f"<p>use {link}.</p>"


@pytest.mark.parametrize("content", [
    "<p><code>loss</code> <code>Binomial + 1</code></p>",
    '<p><a href="x"><code>Binomial</code></a></p>',
    "<h2><code>Binomial</code></h2>",
    "<pre><span></span><code>Binomial</code></pre>",
])  # fmt: skip
def test_nothing_else_does(content):
    assert hook("links")(content) == content
