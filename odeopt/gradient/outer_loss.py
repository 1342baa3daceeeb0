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
        kernel = self._plain if autodiff.can_record([*states, *hparams]) else self._transformed
        if self._tasks is not None:
            batch_dims = tree.pytree.tree_map(_task_dim, outer_batch)
            kernel = torch.func.vmap(self._transformed, (0, batch_dims, None, None))
        with torch.enable_grad(), evaluation():
            size = self._chunk_size(states, outer_batch, hparams)
            gradients = kernel(states, outer_batch, hparams, size)
        if any_requires_grad(gradients):
            raise CapturedTensorError(
                "outer_loss uses a tensor that requires grad and is not one of its arguments: its"
                " gradient would be lost. Pass it in hparams, or detach it."
            )
        each_task = self._outer.many and self._tasks is not None
        return _losses_first(gradients) if each_task else gradients

    def _value(self, states: list[Tensor], hparams: Tensors, batch: PyTree) -> tuple[Tensor, Any]:
        trees = [self._layout.unflatten(y) for y in states]
        return self._outer(self._field, trees, batch, self._hparams_tree(hparams), self._observing)

    def _transformed(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors, size: int | None
    ) -> OuterGradients:
        linearized: Any = torch.func.vjp(
            partial(self._value, batch=outer_batch), states, hparams, has_aux=True
        )
        loss, pullback, aux = linearized
        with torch.no_grad():  # else the gradients would hold a graph as large as the loss's
            gradients = self._pulled(pullback, loss, size)
        return OuterGradients(loss, aux, *gradients)

    def _plain(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors, size: int | None
    ) -> OuterGradients:
        """The same by plain autograd; it requires grad if it depends on anything else."""
        at: Any = autodiff.points((states, hparams))
        loss, aux = self._value(at[0], at[1], outer_batch)
        if autodiff.depends_on_others(tree.tensors((loss, aux)), tree.leaves(at)):
            return OuterGradients(loss, aux, *at)
        gradients = self._pulled(partial(autodiff.pull, loss, at), loss, size)
        return OuterGradients(loss.detach(), tree.map_tensors(Tensor.detach, aux), *gradients)

    def _pulled(self, pull: Pull, loss: Tensor, size: int | None) -> Any:
        """The gradients of one loss, or of each of many, so many at a time."""
        if not self._outer.many:
            return pull(torch.ones_like(loss))
        each = torch.eye(len(loss), dtype=loss.dtype, device=loss.device)
        return in_chunks(over_losses(pull), each, size)

    def _chunk_size(
        self, states: list[Tensor], outer_batch: PyTree, hparams: Tensors
    ) -> int | None:
        """How many losses are differentiated at once: as many as were asked for, or as fit."""
        outer, tasks = self._outer, self._tasks
        if not outer.many or outer.chunk_size or not autodiff.can_record([*states, *hparams]):
            return outer.chunk_size
        if tasks is not None:  # look at the first one
            states = [y[0] for y in states]
            outer_batch = tree.map_tensors(lambda leaf: leaf[0], outer_batch)
        at: Any = autodiff.points((states, hparams))
        shared = tree.tensors((states, hparams, outer_batch))
        return fitting(lambda: self._value(at[0], at[1], outer_batch), shared, tasks or 1)


def _losses_first(gradients: OuterGradients) -> OuterGradients:
    """The gradients of many losses and tasks, with the dimension of losses before that of tasks."""
    values, aux, *others = gradients
    values, *others = tree.map_tensors(lambda leaf: leaf.transpose(0, 1), (values, *others))
    return OuterGradients(values, aux, *others)


def _task_dim(leaf: object) -> int | None:
    return 0 if isinstance(leaf, Tensor) else None
