"""Parameters of a test of which some are left to the slow tests."""

from __future__ import annotations

import pytest


def slow_but(values, *fast):
    """The values, where those that are not among the fast ones are marked as slow."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


def slow_without(values, *slow):
    """The values, where the ones that follow are marked as slow."""
    return [pytest.param(v, marks=pytest.mark.slow) if v in slow else v for v in values]
