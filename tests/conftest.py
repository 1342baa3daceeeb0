"""Settings and fixtures of every test."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("support")
torch.set_num_threads(1)  # parallel test processes would wait for each other's threads

collect_ignore = ["plugin_package"]  # looking for tests in it would register what it brings

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("dev", max_examples=6, **_COMMON)
settings.register_profile("ci", max_examples=10, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=300, **_COMMON)
settings.register_profile("mutation", max_examples=8, derandomize=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


@pytest.fixture(params=[pytest.param(d, marks=[pytest.mark.gpu] * (d == "cuda")) for d in DEVICES])
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _one_world():
    """Float64 by default, seeded, and on few threads so that parallel runs do not fight."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
