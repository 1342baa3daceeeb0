"""Turns the equations of a page into MathML while the site is built; no script is loaded later."""

import html
import re

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
DISPLAYED = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)
CONVERTER = LatexToMathML()


def on_page_content(content, page, config, files):
    """mkdocs calls this with the HTML of each page."""
    content = INLINE.sub(lambda found: mathml(found[1], page, displayed=False), content)
    return DISPLAYED.sub(lambda found: mathml(found[1], page, displayed=True), content)


def mathml(equation, page, displayed):
    latex = html.unescape(equation)
    try:
        found = CONVERTER.convert_with_local_state(latex, displaystyle=displayed)
    except LatexError as error:
        raise PluginError(f"{page.file.src_path}: cannot set ${latex}$: {error}") from error
    return f'<div class="equation">{found}</div>' if displayed else found
