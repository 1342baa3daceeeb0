"""Dropping every Jacobian of the inner optimisation."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Sweep, Swept, WholeAdjoint
from odeopt.registry import ADJOINTS


@final
@ADJOINTS.register("first-order")
class FirstOrderAdjoint(WholeAdjoint):
    r"""Takes the whole solve for the identity: $\lambda_0 := \lambda_T$, as in FOMAML.

    Nothing is kept and nothing is differentiated but the outer loss; the gradients w.r.t.
    hyperparameters hold their direct part only and those w.r.t. the step sizes are zero. Over
    long horizons the direction is almost unrelated to the gradient (`docs/choosing.md`).

    Cost: none beside the forward sweep and one gradient of the outer loss.

    References:
        Finn et al. 2017, "Model-Agnostic Meta-Learning", section 5.2.
    """

    consistent = False
    needs_velocity = False

    @override
    def backward(self, sweep: Sweep, lam: Tensor) -> tuple[Swept, Cost]:
        for cotangent in sweep.cotangents.values():
            lam = lam + cotangent
        zero = torch.zeros_like(sweep.times[..., 1:])
        growth = torch.ones_like(sweep.times[..., 0])
        nothing = torch.zeros_like(growth)
        return Swept(lam, zero, zero, None, growth, nothing), Cost(gradients=0, hvps=0)
