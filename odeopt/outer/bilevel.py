"""Bilevel problems put together: what is inside, what is outside, and what is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from odeopt.errors import CapturedTensorError, InputError
from odeopt.gradient.result import Result, Solution
from odeopt.grid import TimeGrid, check_grid
from odeopt.inner.base import InnerOptimizer
from odeopt.inner.stream import Stream
from odeopt.optimizer import ODEOptimizer
from odeopt.outer.metrics import Step
from odeopt.outer.outer_loop import OuterGradient, OuterLoop, OuterObjective
from odeopt.tools import tree
from odeopt.tools.shown import Shown, counted, number, shown
from odeopt.tools.transforms import any_requires_grad
from odeopt.tools.types import PyTree

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Minimized(Shown):
    """What `BilevelProblem.minimize` gives.

    Attributes:
        hparams: the learned ones.
        steps: the outer updates, those before an interruption included if there is a folder.
    """

    hparams: PyTree
    steps: list[Step]

    @override
    def _shown(self) -> Iterator[str]:
        yield f"hparams={shown(self.hparams)}"
        yield counted(len(self.steps), "update")
        if self.steps:
            yield f"value={number(self.steps[-1].value)} before the last one"


@final
class BilevelProblem(Shown):
    r"""$\min_\eta F(u_N(\eta), \eta)$, where $u_N$ is the end of an inner optimisation.

    hparams $\eta$ are any pytree: strengths of regularisation, weights of examples, synthetic data,
    parameters of the loss (all used by the losses), learning rates (used by `grid`) and
    initialisations (used by `params`). $dF/d\eta = \partial_\eta F + g_\text{path}
    + (\partial dt / \partial\eta)^\top g_{dt} + (\partial u_0 / \partial\eta)^\top \lambda_0$:
    every way in which they act is differentiated. For meta-learning over tasks see `MetaLearner`.

    Examples:
        >>> import torch, odeopt
        >>> def loss(params, batch, hparams):  # ridge regression
        ...     x, y = batch
        ...     return ((x @ params - y) ** 2).mean() + hparams["ridge"].exp() * (params**2).sum()
        >>> def validation(params, batch, hparams):
        ...     return ((batch[0] @ params - batch[1]) ** 2).mean()
        >>> problem = odeopt.BilevelProblem(
        ...     odeopt.SGD(loss, momentum=0.9),
        ...     validation,
        ...     grid=lambda hparams: odeopt.TimeGrid.from_lr(hparams["lr"].exp(), steps=20),
        ... )
        >>> hparams = {"ridge": torch.tensor(-2.0), "lr": torch.tensor(-3.0)}
        >>> train, held_out = [(torch.randn(30, 5), torch.randn(30)) for _ in "ab"]
        >>> res = problem.value_and_grad(hparams, torch.zeros(5), train, held_out)
        >>> sorted(res.grads.hparams)
        ['lr', 'ridge']

    Args:
        inner: an update rule such as `Adam(loss)`, a field, or an `ODEOptimizer`, with its choice
            of solver, adjoint and checkpoints. Losses are called `loss(params, batch, hparams)`.
        outer_loss: `outer_loss(params, outer_batch, hparams)`, a scalar tensor.
        grid: the learning rates, or a function of hparams that makes them.
        compile: None or a compile backend (see `ODEOptimizer`); not with an `ODEOptimizer`, which
            has its own.

    Raises:
        InputError: if one of them is none of these.
        CapturedTensorError: if the grid was made from a tensor that requires grad.
    """

    def __init__(
        self,
        inner: InnerOptimizer | ODEOptimizer | Callable[..., PyTree],
        outer_loss: Callable[..., Tensor],
        grid: TimeGrid | Callable[[PyTree], TimeGrid],
        *,
        compile: str | None = None,
    ) -> None:
        self._opt = _optimizer(inner, compile)
        self._opt.value_and_grad(outer_loss)  # checks it
        self._outer_loss, self._grid = outer_loss, grid
        if not callable(grid):
            _check_grid(grid)

    @override
    def _shown(self) -> Iterator[str]:
        yield shown(self._opt, limit=130)
        yield f"outer_loss={shown(self._outer_loss)}"
        yield f"grid={shown(self._grid)}"

    def value_and_grad(
        self, hparams: PyTree, params: PyTree, batch: PyTree, outer_batch: PyTree, *,
        many: bool = False, chunk_size: int | None = None,
    ) -> Result:  # fmt: skip
        """The outer loss, and its whole gradient w.r.t. hparams in `grads.hparams`.

        Cost and memory are those of `ODEOptimizer.value_and_grad`. `grads.params` and `grads.dt`
        are gradients w.r.t. the initialisation and the learning rates themselves.

        Args:
            hparams: a pytree; its floating-point tensors are differentiated.
            params: where the inner optimisation begins, or a function of hparams that says so.
            batch: the training data, or a `Stream` of them.
            outer_batch: the validation data.
            many: whether the outer loss returns many losses; as in `ODEOptimizer.value_and_grad`.
            chunk_size: how many are pulled at once; likewise.

        Raises:
            OdeoptError: see `odeopt.errors`; each message says what to do.
        """
        fixed = tree.map_tensors(Tensor.detach, hparams)
        leaves = tree.map_tensors(_as_leaf, fixed)
        grid, start = self._grid_at(fixed, leaves), params
        if callable(params):
            start = _with_graph(params, fixed, leaves, "params", lambda own: own)
        call = self._opt.value_and_grad(self._outer_loss, many=many, chunk_size=chunk_size)
        res = call(start, batch, grid.detach(), outer_batch, fixed)
        outputs = [(grid.dt, res.grads.dt)]
        if callable(params):
            ends = tree.tensors(start), tree.tensors(res.grads.params)
            outputs += list(zip(*ends, strict=True))
        pulled = iter(_pull(outputs, leaves, many))

        def add(direct: Tensor) -> Tensor:
            indirect = next(pulled)
            return direct if indirect is None else direct + indirect

        total = tree.map_tensors(add, res.grads.hparams)
        return replace(res, grads=replace(res.grads, hparams=total))

    def solve(self, hparams: PyTree, params: PyTree, batch: PyTree) -> Solution:
        """The inner optimisation alone, differentiable by autograd w.r.t. all of its arguments."""
        grid = self._grid(hparams) if callable(self._grid) else self._grid
        start = params(hparams) if callable(params) else params
        return self._opt.solve(start, batch, _check_grid(grid, learned=True), hparams)

    def value(self, hparams: PyTree, params: PyTree, batch: PyTree, outer_batch: PyTree) -> Tensor:
        """The outer loss after the inner optimisation, without gradients."""
        with torch.no_grad():
            fixed = tree.map_tensors(Tensor.detach, hparams)
            sol = self.solve(fixed, params, batch)
            keywords = self._opt.field.outer_keywords(sol.state)
            return self._outer_loss(sol.params, outer_batch, fixed, **keywords)

    def minimize(
        self, hparams: PyTree, params: PyTree, batch: PyTree, outer_batch: PyTree, updates: int, *,
        optimizer: Callable[[list[Tensor]], Optimizer] = torch.optim.Adam,
        schedule: Callable[[Any], LRScheduler] | None = None,
        validation: PyTree = None, validate_every: int = 10, tolerance: float = 0.0,
        clip: float | None = None, callback: Callable[[Step], None] | None = None,
        folder: str | Path | None = None, checkpoint_every: int = 10, show_progress: bool = True,
    ) -> Minimized:  # fmt: skip
        """Learn hparams by gradient descent on the outer loss.

        Constraints are left to the functions that use hparams, e.g. `hparams["lr"].exp()`.

        Args:
            hparams: where to begin; not changed.
            params: as in `value_and_grad`.
            batch: the training data, a `Stream` of them, or a function of the update's number k
                that gives either, e.g. `lambda k: Stream.minibatches(data, 20, seed=k)`.
            outer_batch: the validation data, or a function of k (a `Stream` is one).
            updates: how many outer updates to make in all.
            optimizer: makes the outer optimiser from the list of tensors in hparams.
            schedule: makes a scheduler of `torch.optim.lr_scheduler` from the outer optimiser, as
                in `MetaLearner`.
            validation: data on which the outer loss is evaluated as well, after inner training.
            validate_every: updates between two such evaluations; the last one makes one, too.
            tolerance: stop when hparams move by less.
            clip: the largest norm of a gradient; longer ones are shortened.
            callback: called with a `Step` after each update.
            folder: where `metrics.jsonl` and checkpoints go. The same call made again goes on from
                the last checkpoint, on a CPU bit for bit as if it had not been interrupted.
            checkpoint_every: updates between two checkpoints.
            show_progress: whether to show a progress bar, where standard error is a terminal.

        Raises:
            OdeoptError: as `value_and_grad`, with the number of the update in a note.
        """
        loop = OuterLoop(
            _OuterLoss(self, params, batch, outer_batch, validation),
            {"hparams": hparams}, optimizer, schedule=schedule, clip=clip,
            validate_every=validate_every, callback=callback, folder=folder,
            checkpoint_every=checkpoint_every, show_progress=show_progress,
        )  # fmt: skip
        loop.restore()
        steps = loop.fit(updates, tolerance)
        return Minimized(loop.learned["hparams"], steps if folder is None else loop.history())

    def _grid_at(self, fixed: PyTree, leaves: PyTree) -> TimeGrid:
        make = self._grid
        if not callable(make):
            return make
        grid = _with_graph(
            lambda hparams: _check_grid(make(hparams), learned=True), fixed, leaves, "grid",
            lambda own: own.dt,
        )  # fmt: skip
        begin = grid.times[0]
        if any(bool(g.any()) for g in _pull([(begin, None)], leaves) if g is not None):
            raise InputError(
                "the time at which the grid begins depends on hparams, which is not"
                " differentiated: begin at a fixed time, as from_lr and uniform do."
            )
        return grid


class _OuterLoss(OuterObjective):
    """The outer loss of a bilevel problem, as a function of its hparams."""

    def __init__(
        self, problem: BilevelProblem, params: PyTree, batch: PyTree, outer_batch: PyTree,
        validation: PyTree,
    ) -> None:  # fmt: skip
        self._problem, self._params = problem, params
        self._batch, self._outer_batch, self._validation = batch, outer_batch, validation
        self._held_out = None if validation is None else self._data(0, validation)

    def _data(self, update: int, outer: PyTree) -> tuple[PyTree, PyTree]:
        """What is trained on and what is evaluated; functions are called with the number."""
        inner = self._batch
        if callable(inner) and not isinstance(inner, Stream):
            inner = inner(update)
        return inner, outer(update) if callable(outer) else outer

    @override
    def draw(self, update: int) -> tuple[PyTree, PyTree]:
        return self._data(update, self._outer_batch)

    @override
    def gradient(
        self, learned: Mapping[str, PyTree], drawn: tuple[PyTree, PyTree]
    ) -> OuterGradient:
        res = self._problem.value_and_grad(learned["hparams"], self._params, *drawn)
        return OuterGradient(res.value, {"hparams": res.grads.hparams})

    @override
    def validation(self, learned: Mapping[str, PyTree]) -> float | None:
        if self._held_out is None:
            return None
        return float(self._problem.value(learned["hparams"], self._params, *self._held_out))

    @override
    def settings(self) -> Mapping[str, Any]:
        return {
            "the problem": self._problem,
            "the initial params": self._params,
            "the data": (self._batch, self._outer_batch, self._validation),
        }


def _optimizer(
    inner: InnerOptimizer | ODEOptimizer | Callable[..., PyTree], compile: str | None
) -> ODEOptimizer:
    if not isinstance(inner, ODEOptimizer):
        return ODEOptimizer(inner, compile=compile)
    if compile is not None:
        raise InputError(
            f"compile={compile!r} was given beside an ODEOptimizer, which has its own: give it to"
            " that one."
        )
    return inner


_CAPTURED = (
    "{what} was made from a tensor that requires grad and is no part of hparams: its gradient"
    " would be lost. Put it into hparams, and pass a function, {what}=lambda hparams: ..."
)


def _check_grid(grid: Any, learned: bool = False) -> TimeGrid:
    grid = check_grid(
        grid,
        ", or a function of hparams that makes one (lambda hparams: TimeGrid.from_lr(hparams['lr'],"
        " steps=100))",
    )
    if grid.tasks is not None:
        raise InputError(
            f"grid holds {grid.tasks} tasks, but a BilevelProblem has one inner problem: give it"
            " times of shape [N + 1], or use value_and_grad(..., tasks=True) of an ODEOptimizer,"
            " or a MetaLearner."
        )
    if grid.dt.requires_grad and not learned:
        raise CapturedTensorError(_CAPTURED.format(what="grid"))
    return grid


def _with_graph(
    make: Callable[[PyTree], T], fixed: PyTree, leaves: PyTree, what: str,
    differentiated: Callable[[T], PyTree],
) -> T:  # fmt: skip
    """What a function makes of hparams that require grad, and of no other tensor that does."""
    with torch.enable_grad():
        if any_requires_grad(differentiated(make(fixed))):
            raise CapturedTensorError(_CAPTURED.format(what=what))
        return make(leaves)


def _as_leaf(leaf: Tensor) -> Tensor:
    return leaf.clone().requires_grad_() if tree.is_differentiable(leaf) else leaf


def _pull(
    outputs: Sequence[tuple[Tensor, Tensor | None]], leaves: PyTree, many: bool = False
) -> list[Tensor | None]:
    """Cotangents of outputs as gradients w.r.t. the differentiable leaves of a tree.

    With `many` cotangents and gradients have a first dimension more.
    """
    learned = [leaf for leaf in tree.tensors(leaves) if leaf.requires_grad]
    with_graph = [(out, g) for out, g in outputs if out.requires_grad]
    if not with_graph or not learned:
        return [None] * len(learned)
    tensors, gradients = zip(*with_graph, strict=True)
    return list(
        torch.autograd.grad(
            tensors, learned, gradients, retain_graph=True, allow_unused=True, is_grads_batched=many
        )
    )
