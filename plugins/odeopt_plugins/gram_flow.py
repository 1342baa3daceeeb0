"""Gradient flow of a linear layer with its sensitivities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

import odeopt
from odeopt.tools.types import PyTree

OutputLoss = Callable[[Tensor, PyTree], Tensor]
"""`output_loss(outputs, batch)`: a scalar, from outputs of shape [M, N]."""


class GramFlow(odeopt.Field):
    r"""Gradient flow of a linear layer, in coordinates that do not know the feature dimension.

    With features $\Phi$ [M, F], initial outputs $Z_0 = \Phi W_0^\top$ and the Gram matrix
    $G = \Phi\Phi^\top$, the weights stay $W(t) = W_0 - s(t)^\top\Phi$, where
    $s' = \nabla_Z L(Z_0 - G s)$ and s has the shape [M, N]. With `sensitive`, the state also holds
    $S = \partial s / \partial (Z_0, G)$, shape [MN + MM, M, N], whose equation is the
    linearisation of that of s. The batch is (Z_0, G, training data).

    Args:
        output_loss: L as a function of the outputs.
        sensitive: whether sensitivities are carried along.
    """

    def __init__(self, output_loss: OutputLoss, sensitive: bool) -> None:
        self._output_loss, self._sensitive = output_loss, sensitive

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: Any
    ) -> PyTree:
        start, gram, data = batch
        s = state["s"]

        def slope(outputs: Tensor) -> Tensor:
            return torch.func.grad(lambda z: self._output_loss(z, data))(outputs)

        outputs = start - gram @ s
        if not self._sensitive:
            return {"s": slope(outputs)}
        turned = torch.einsum("ab,dbn->dan", gram, state["S"])  # matmul would copy gram
        moved = _directions(s) - turned
        push: Any = torch.func.vmap(lambda v: torch.func.jvp(slope, (outputs,), (v,))[1])
        return {"s": slope(outputs), "S": push(moved)}


def _directions(s: Tensor) -> Tensor:
    r"""$\partial(Z_0 - G s)$ for each entry of $Z_0$ and of G, s held fixed: [MN + MM, M, N]."""
    m, n = s.shape
    eye = torch.eye(m, dtype=s.dtype, device=s.device)
    outputs = torch.eye(m * n, dtype=s.dtype, device=s.device).reshape(m * n, m, n)
    gram = torch.einsum("am,bn->abmn", eye, s).reshape(m * m, m, n)
    return torch.cat([outputs, -gram])
