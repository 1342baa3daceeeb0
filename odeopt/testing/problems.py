"""Small problems with known answers, in float64, and what the suites compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


@dataclass(frozen=True, eq=False)
class Quadratic:
    r"""$L(u) = \tfrac12 (u - c)^\top A (u - c)$, whose flow is $u(t) = c + e^{-At}(u_0 - c)$.

    Attributes:
        matrix: A, symmetric, shape [d, d]; negative eigenvalues are allowed.
        center: c, shape [d]; it is the batch of the loss.
    """

    matrix: Tensor
    center: Tensor

    @classmethod
    def from_spectrum(cls, eigenvalues: Sequence[float], seed: int = 0) -> Quadratic:
        """A quadratic with these eigenvalues in a random basis."""
        generator = torch.Generator().manual_seed(seed)
        d = len(eigenvalues)
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        spectrum = torch.tensor(list(eigenvalues), dtype=torch.float64)
        center = torch.randn(d, generator=generator, dtype=torch.float64)
        return cls(basis @ torch.diag(spectrum) @ basis.T, center)

    def loss(self, params: Tensor, batch: Tensor) -> Tensor:
        """The loss; the batch is the centre."""
        offset = params - batch
        return 0.5 * torch.dot(offset, self.matrix.to(offset.device) @ offset)

    def flow(self, u0: Tensor, t: float) -> Tensor:
        """The state of gradient flow at time t, shape [d]."""
        center = self.center.to(u0.device)
        return center + self.flow_adjoint(u0 - center, t)

    def flow_adjoint(self, lam: Tensor, t: float) -> Tensor:
        """The gradient at time 0 for a gradient lam at time t (the flow map is symmetric)."""
        return torch.linalg.matrix_exp(-self.matrix * t).to(lam.device) @ lam

    def descent_adjoint(self, lam: Tensor, lr: float, steps: int) -> Tensor:
        """The same for gradient descent."""
        contraction = torch.eye(len(self.matrix), dtype=torch.float64) - lr * self.matrix
        return torch.linalg.matrix_power(contraction, steps).to(lam.device) @ lam


class SmoothProblem(NamedTuple):
    """A small smooth non-convex problem; losses take `(params, batch)` or with hparams."""

    loss: Loss
    params: dict[str, Tensor]
    batch: tuple[Tensor, Tensor]
    outer_batch: tuple[Tensor, Tensor]
    hparams: dict[str, Tensor]


def smooth_problem(device: torch.device | None = None, tasks: int | None = None) -> SmoothProblem:
    """Regression by a tanh network with 3 hidden units; 13 parameters.

    With hparams, a learned penalty `exp(hparams["penalty"])` and a shift of the targets are added.
    With tasks, the batches carry a leading task dimension.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    lead = () if tasks is None else (tasks,)
    params = {"hidden": draw(3, 2), "bias": 0.3 * draw(3), "out": draw(3), "shift": draw(1)}
    hparams = {"penalty": 0.1 * draw() - 2.0, "targets": 0.5 * draw(6)}
    return SmoothProblem(
        _regression,
        params,
        (draw(*lead, 6, 2), draw(*lead, 6)),
        (draw(*lead, 6, 2), draw(*lead, 6)),
        hparams,
    )


def _regression(
    params: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    hparams: dict[str, Tensor] | None = None,
) -> Tensor:
    x, y = batch
    hidden = torch.tanh(x @ params["hidden"].T + params["bias"])
    error = hidden @ params["out"] + params["shift"] - y
    if hparams is None:
        return 0.5 * error.square().mean()
    penalty = torch.exp(hparams["penalty"]) * params["out"].square().sum()
    return 0.5 * (error - hparams["targets"]).square().mean() + penalty


def relative_error(found: PyTree, expected: PyTree) -> float:
    r"""$\lVert x - x^*\rVert / \lVert x^*\rVert$ over all leaves (absolute where $x^* = 0$)."""
    difference, scale = 0.0, 0.0
    for x, reference in zip(tree.tensors(found), tree.tensors(expected), strict=True):
        difference += (x - reference).double().square().sum().item()
        scale += reference.double().square().sum().item()
    return (difference / scale if scale > 0 else difference) ** 0.5


def check_close(found: PyTree, expected: PyTree, limit: float, message: str) -> None:
    """Raise `AssertionError` with a message if the relative error is not below a limit."""
    error = relative_error(found, expected)
    assert error < limit, f"{message}: relative error {error:.1e}"


def check_vmap(function: Callable[[Any], PyTree], tasks: PyTree, limit: float, what: str) -> None:
    """Check that under vmap each task gets what it gets alone."""
    together = torch.func.vmap(function)(tasks)
    for index in range(len(tree.tensors(tasks)[0])):
        alone = function(task(tasks, index))
        check_close(task(together, index), alone, limit, f"vmap changes {what} of task {index}")


def task(tasks: PyTree, index: int) -> Any:
    """One of several tasks."""
    return tree.map_tensors(lambda leaf: leaf[index], tasks)


def number(value: float, like: Tensor) -> Tensor:
    """A 0-dim tensor of the same dtype and device."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


class CallCounter:
    """A function, and the number of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """The function's value."""
        self.calls += 1
        return self._function(*args)
