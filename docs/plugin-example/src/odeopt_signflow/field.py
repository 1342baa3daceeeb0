"""The field: descent along a smoothed sign of the gradient."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

import odeopt
from odeopt.tools import tree
from odeopt.tools.arguments import Selector, call_loss, check_selector, select
from odeopt.tools.types import Loss, PyTree


@final
@odeopt.FIELDS.register("sign-flow", example=lambda loss: SignFlow(loss, softening=0.5))
class SignFlow(odeopt.Field):
    r"""$u' = -g / \sqrt{g^2 + \varepsilon^2}$ for each entry, with $g = \nabla L(u)$.

    Entries whose gradient is well above the softening $\varepsilon$ move at speed 1, as in sign
    descent; below it they follow gradient flow with the rate $1 / \varepsilon$. The field is smooth
    for $\varepsilon > 0$, and differentiable in $\varepsilon$. It is no gradient of a potential:
    its Jacobian is $-D H$, with the Hessian H and
    $D = \mathrm{diag}(\varepsilon^2 / (g^2 + \varepsilon^2)^{3/2})$.

    With `Euler` and steps h no entry moves further than h in a step, and steps are stable near a
    minimum while $h < 2 \varepsilon / \lambda_{\max}(H)$.

    Cost: one gradient per velocity. Memory: as gradient flow.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor.
        softening: $\varepsilon > 0$, a number or a selector of hparams.

    References:
        Bernstein et al. 2018, "signSGD: Compressed Optimisation for Non-Convex Problems", for the
        limit $\varepsilon \to 0$.
    """

    def __init__(self, loss: Loss, softening: Selector = 0.1) -> None:
        if isinstance(softening, float | int) and not softening > 0:
            raise odeopt.InputError(f"softening is {softening!r}; expected a positive number.")
        self._loss = loss
        self._softening = check_selector(softening, "softening")

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        gradient = torch.func.grad(lambda u: call_loss(self._loss, hparams, u, batch))(state)
        softening = select(self._softening, hparams, "softening")
        return tree.map_tensors(lambda g: -g * torch.rsqrt(g * g + softening**2), gradient)
