"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from typing_extensions import override

from odeopt.engine.stats import Stats, cost
from odeopt.tools import tree
from odeopt.tools.shown import Shown, counted, norm, number, shown
from odeopt.tools.types import PyTree


@dataclass(frozen=True, eq=False)
class Solution(Shown):
    """The end of an inner optimisation; differentiable.

    Attributes:
        params: the final parameters; with tasks, each leaf with a leading task dimension.
        state: the whole final state, from which a later solve can start (`solve(state=...)`).
        observed: the states asked for with `TimeGrid(observe=...)`, in that order.
        status: a `Status` code, shape [] or [tasks]; None under `torch.func.vmap`.
        stats: what it cost; the backward pass adds its own part.
    """

    params: PyTree
    state: PyTree
    observed: list[PyTree]
    status: Tensor | None
    stats: Stats

    @override
    def _shown(self) -> Iterator[str]:
        yield from norm("params", tree.tensors(self.params)) or [f"params={shown(self.params)}"]
        if self.observed:
            yield f"{len(self.observed)} observed"
        yield from tasks(self.status)
        yield from cost(self.stats)


@dataclass(frozen=True, eq=False)
class Grads(Shown):
    """Gradients of the mean outer loss.

    Attributes:
        params: like the parameters.
        hparams: like hparams; None for leaves that are not floating-point tensors, and as a whole
            when hparams is None.
        dt: w.r.t. the step sizes, shape [N]; with tasks [tasks, N], of each task's own value.
            Later steps begin later when a step grows, and this is included. For the learning rate
            of `from_lr` with one number sum it; for the horizon of `uniform` take its mean.
        batch: like the batch, for leaves that require grad (with tasks, of each task's own
            value), None for the others; None as a whole when no leaf does.
    """

    params: PyTree
    hparams: PyTree
    dt: Tensor
    batch: PyTree

    @override
    def _shown(self) -> Iterator[str]:
        for name in ("params", "hparams", "dt", "batch"):
            own: PyTree = getattr(self, name)
            leaves = tree.tensors(own)
            yield from norm(name, leaves) or ([f"{name}={shown(own)}"] if leaves else [])


@dataclass(frozen=True, eq=False)
class ErrorEstimate(Shown):
    r"""An estimate of the discretisation error, by Richardson's rule.

    The solve and its gradient are computed once more with steps (and kept nodes) twice as long;
    with order p, $\lVert g_h - g\rVert \approx \lVert g_{2h} - g_h\rVert / (2^p - 1)$. For gradient
    flows the next term of the error is taken into account as well.

    Attributes:
        value: the relative error of the outer loss.
        params: the relative error of `grads.params`, in the L2 norm; inf where there is no
            estimate.
        hparams: likewise of `grads.hparams`; 0 if there are none.
        gap: the relative change of the gradient between the two; the larger of both parts.
        order: p.
        doubts: why the estimate cannot be trusted, in words; empty if it can.
        stats: what it cost.
        defects: how far the interpolated state misses the flow in the middle of each interval
            between kept states, in units of the way it goes, shape [intervals] or [intervals,
            tasks]; None where nothing is interpolated.
    """

    value: float
    params: float
    hparams: float
    gap: float
    order: int
    doubts: tuple[str, ...]
    stats: Stats
    defects: Tensor | None = None

    @override
    def _shown(self) -> Iterator[str]:
        for name in ("value", "params", "hparams", "gap"):
            yield f"{name}={number(getattr(self, name))}"
        yield f"order={self.order}"
        yield "trusted" if self.trusted else f"doubts={shown(self.doubts)}"

    @property
    def trusted(self) -> bool:
        """Whether there is no doubt."""
        return not self.doubts


@dataclass(frozen=True, eq=False)
class Result(Shown):
    """A value and its gradients.

    With `many=True` value, values and all gradients have a first dimension of losses.

    Attributes:
        value: the outer loss, 0-dim; with tasks the mean over tasks that did not fail.
        values: the outer loss of each task, shape [tasks]; None without tasks.
        grads: the gradients.
        status: a `Status` code, shape [] or [tasks]; all OK unless `on_failure="skip"`.
        stats: what it cost.
        aux: what the outer loss returned beside its value, when `has_aux=True`.
        diagnostics: what the adjoint reports, by name (see `ImplicitAdjoint`).
        error: how far the gradient is from the flow's, with `estimate_error=True`; else None.
    """

    value: Tensor
    values: Tensor | None
    grads: Grads
    status: Tensor
    stats: Stats
    aux: Any = None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    error: ErrorEstimate | None = None

    @override
    def _shown(self) -> Iterator[str]:
        yield from value_and_norms(self.value, self.grads)
        if self.error is not None:
            yield f"error={number(max(self.error.params, self.error.hparams))}"
        yield from tasks(self.status)
        yield from cost(self.stats)


def value_and_norms(
    value: Tensor, grads: object, names: Sequence[str] = ("params", "hparams")
) -> Iterator[str]:
    """What is said of an outer loss and its gradients: `value=0.3`, `|grads.params|=1.2`."""
    yield f"value={number(value)}"
    for name in names:
        yield from norm(f"grads.{name}", tree.tensors(getattr(grads, name)))


def tasks(status: Tensor | None) -> list[str]:
    """How many tasks there are, and how many of them failed; nothing without tasks.

    Without tasks it says so where the one solve failed.
    """
    if status is None:
        return []
    try:
        failed = int((status != 0).sum())
    except RuntimeError:  # inside of a transform
        return []
    if status.ndim == 0:
        return ["failed"] if failed else []
    return [counted(len(status), "task"), *([f"{failed} failed"] if failed else [])]
