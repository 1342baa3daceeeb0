"""The outer loss: its value and its gradients at the end of a solve (eq. 6, first line)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odeopt.engine.many import Pull, fitting, in_chunks, over_losses
from odeopt.engine.watch import evaluation
from odeopt.errors import CapturedTensorError, InputError
from odeopt.inner.base import InnerOptimizer
from odeopt.tools import autodiff, tree
from odeopt.tools.arguments import call_loss, check_integer, check_scalar, check_vector
from odeopt.tools.memory import measured
from odeopt.tools.shown import shown
from odeopt.tools.transforms import any_requires_grad
from odeopt.tools.types import PyTree, Tensors


@dataclass(frozen=True)
class OuterLoss:
    """The outer loss on flat states.

    Attributes:
        loss: the user's function.
        has_aux: whether it returns a pair, with anything as the second.
        many: whether it returns many losses, shape [losses], each of which is differentiated.
        chunk_size: how many of them at once; None for as many as fit into memory.
    """

    loss: Callable[..., Any]
    has_aux: bool
    many: bool = False
    chunk_size: int | None = None

    @property
    def lead(self) -> int:
        """How many dimensions values and gradients have before that of tasks."""
        return int(self.many)

    def __call__(
        self, field: InnerOptimizer, states: list[PyTree], outer_batch: PyTree, hparams: PyTree,
        observing: bool,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """The value and aux at the final state, the last of `states`; the others are observed."""
        params = field.readout(states[-1])
        keywords: dict[str, Any] = {"observed": states[:-1]} if observing else {}
        keywords |= field.outer_keywords(states[-1])
        result = call_loss(self.loss, hparams, params, outer_batch, what="outer_loss", **keywords)
        check = check_vector if self.many else check_scalar
        if not self.has_aux:
            return check(result, "outer_loss"), ()
        if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
            raise InputError(
                f"has_aux=True, but outer_loss returned {shown(result)}; expected a pair."
            )
        value, aux = cast("tuple[Any, Any]", result)
        return check(value, "outer_loss"), aux


def make_outer_loss(
    loss: Callable[..., Any], has_aux: bool, many: bool, chunk_size: int | None
) -> OuterLoss:
    """The outer loss, its settings checked.

    Raises:
        InputError: if loss is no function, or chunk_size no positive number of losses.
    """
    if not callable(loss):
        raise InputError(f"outer_loss is {shown(loss)}; expected a function.")
    if chunk_size is not None and not many:
        raise InputError(
            f"chunk_size is {shown(chunk_size)}, which is of use with many=True alone."
        )
    if chunk_size is not None:
        check_integer(chunk_size, "chunk_size")
    return OuterLoss(loss, has_aux, many, chunk_size)


class OuterGradients(NamedTuple):
    """The outer loss and its gradients; with tasks all with a leading task dimension.

    With many outer losses all but aux have a dimension of losses before that.
    """

    values: Tensor
    """The loss itself."""
    aux: Any
    states: list[Tensor]
    """Gradients w.r.t. the observed states and, last, the final one."""
    hparams: Tensors


class OuterKernel:
    """`(flat states, outer_batch, hparams leaves) -> OuterGradients` of detached inputs.

    It is over all tasks at once if there are some.

    Args:
        outer: the outer loss.
        field: the inner optimiser.
        layout: of its states.
        hparams_tree: makes hparams of their differentiable leaves.
        tasks: how many there are.
        observing: whether the grid observes states.
    """

    def __init__(
        self, outer: OuterLoss, field: InnerOptimizer, layout: tree.Ravel,
        hparams_tree: Callable[[Tensors], PyTree], tasks: int | None, observing: bool = False,
    ) -> None:  # fmt: skip
        self._outer, self._field, self._layout = outer, field, layout
        self._hparams_tree, self._tasks, self._observing = hparams_tree, tasks, observing

    def __call__(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors
    ) -> OuterGradients:
        """The loss and its gradients.

        Raises:
            CapturedTensorError: if a result requires grad nevertheless.
        """
        tasks, recorded = self._tasks, autodiff.can_record([*states, *hparams])
        with torch.enable_grad(), evaluation():
            if tasks is not None:
                size = self._size_for_tasks(states, outer_batch, hparams) if recorded else None
                dims = (0, tree.pytree.tree_map(_task_dim, outer_batch), None)
                kernel = torch.func.vmap(partial(self._transformed, size=size), dims)
            else:
                kernel = self._plain if recorded else self._transformed
            gradients = kernel(states, outer_batch, hparams)
        if any_requires_grad(gradients):
            raise CapturedTensorError(
                "outer_loss uses a tensor that requires grad and is not one of its arguments: its"
                " gradient would be lost. Pass it in hparams, or detach it."
            )
        return _losses_first(gradients) if self._outer.many and tasks is not None else gradients

    def _value(self, states: list[Tensor], hparams: Tensors, batch: PyTree) -> tuple[Tensor, Any]:
        trees = [self._layout.unflatten(y) for y in states]
        return self._outer(self._field, trees, batch, self._hparams_tree(hparams), self._observing)

    def _transformed(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors, size: int | None = None
    ) -> OuterGradients:
        linearized: Any = torch.func.vjp(
            partial(self._value, batch=outer_batch), states, hparams, has_aux=True
        )
        loss, pullback, aux = linearized
        with torch.no_grad():  # else the gradients would hold a graph as large as the loss's
            gradients = self._pulled(pullback, loss, size)
        return OuterGradients(loss, aux, *gradients)

    def _plain(self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors) -> OuterGradients:
        """The same by plain autograd; it requires grad if it depends on anything else."""
        at, (loss, aux), nbytes = self._recorded(states, outer_batch, hparams)
        if autodiff.depends_on_others(tree.tensors((loss, aux)), tree.leaves(at)):
            return OuterGradients(loss, aux, *at)
        size = fitting(nbytes, loss.device)
        pull = partial(autodiff.pull, loss, at, retain_graph=self._outer.many)
        gradients = self._pulled(pull, loss, size)
        return OuterGradients(loss.detach(), tree.map_tensors(Tensor.detach, aux), *gradients)

    def _recorded(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors
    ) -> tuple[Any, Any, int | None]:
        """Leaves to differentiate at, the loss with aux, and the bytes of its graph if wanted."""
        at: Any = autodiff.points((states, hparams))
        evaluate = partial(self._value, *at, outer_batch)
        if not self._outer.many or self._outer.chunk_size is not None:
            return at, evaluate(), None
        return at, *measured(evaluate, tree.tensors((states, hparams, outer_batch)))

    def _size_for_tasks(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors
    ) -> int | None:
        """How many losses of each task are pulled at once, from a look at the first task."""
        outer, tasks = self._outer, self._tasks
        if not outer.many or outer.chunk_size is not None or tasks is None:
            return None
        first = [y[0] for y in states], tree.map_tensors(lambda leaf: leaf[0], outer_batch)
        nbytes = self._recorded(*first, hparams)[2]
        return fitting(None if nbytes is None else tasks * nbytes, states[0].device)

    def _pulled(self, pull: Pull, loss: Tensor, size: int | None) -> Any:
        """The gradients of one loss, or of each of many.

        So many at a time, unless the user has said how many.
        """
        if not self._outer.many:
            return pull(torch.ones_like(loss))
        each = torch.eye(len(loss), dtype=loss.dtype, device=loss.device)
        return in_chunks(over_losses(pull), each, self._outer.chunk_size or size)


def _losses_first(gradients: OuterGradients) -> OuterGradients:
    """The gradients of many losses and tasks, with the dimension of losses before that of tasks."""
    values, aux, *others = gradients
    values, *others = tree.map_tensors(lambda leaf: leaf.transpose(0, 1), (values, *others))
    return OuterGradients(values, aux, *others)


def _task_dim(leaf: object) -> int | None:
    return 0 if isinstance(leaf, Tensor) else None
