"""What works without the optional packages, and what says which one it needs."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_EXTRAS = """
import sys
for name in ("rich", "torchdiffeq", "typer"):
    sys.modules[name] = None
import torch, odeopt
loss = lambda params, batch: ((params - batch) ** 2).sum()
args = torch.zeros(2), torch.ones(2), odeopt.TimeGrid.from_lr(0.1, 3), torch.ones(2)
print(odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).value_and_grad(loss)(*args).value.item())
print(len(odeopt.METHODS.names()) > 5)
try:
    adjoint = odeopt.ContinuousAdjoint(odeopt.RK4())
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.DormandPrince(), adjoint)
    opt.solve(*args[:3])
except odeopt.CompatibilityError as error:
    print(error)
import runpy
try:
    runpy.run_module("odeopt", run_name="__main__")
except SystemExit as error:
    print(error)
"""


def test_the_core_needs_torch_and_numpy_alone():
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_EXTRAS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    value, methods, solver, command = found.stdout.splitlines()
    assert 0 < float(value) < 2
    assert methods == "True"
    assert "pip install 'odeopt[torchdiffeq]'" in solver
    assert "pip install 'odeopt[cli]'" in command
