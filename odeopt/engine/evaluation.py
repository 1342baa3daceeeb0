"""Blocks in which what users wrote is evaluated and differentiated."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from odeopt.inner.attention import PLAIN_ATTENTION
from odeopt.tools.refusals import explain


@contextmanager
def evaluation() -> Generator[None]:
    """A block in which attention is written out, and what torch refuses is explained.

    Errors of other kinds, those that the user's own code raises among them, pass unchanged.

    Raises:
        CompatibilityError: if torch cannot differentiate, or batch, what is done in it.
    """
    with PLAIN_ATTENTION:
        try:
            yield
        except RuntimeError as error:
            explained = explain(error)
            if explained is None:
                raise
            raise explained from error
