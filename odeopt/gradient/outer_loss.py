"""The outer loss: its value and its gradients at the end of a solve (eq. 6, first line)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odeopt.engine.watch import evaluation
from odeopt.errors import CapturedTensorError, InputError
from odeopt.inner.base import InnerOptimizer
from odeopt.tools import autodiff, tree
from odeopt.tools.arguments import call_loss, check_scalar
from odeopt.tools.transforms import any_requires_grad
from odeopt.tools.types import PyTree, Tensors

OuterKernel = Callable[[list[Tensor], PyTree, Tensors], "OuterGradients"]


@dataclass(frozen=True)
class OuterLoss:
    """The outer loss on flat states."""

    loss: Callable[..., Any]
    has_aux: bool

    def __call__(
        self, field: InnerOptimizer, states: list[PyTree], outer_batch: PyTree, hparams: PyTree,
        observing: bool,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """The value and aux at the final state, the last of `states`; the others are observed."""
        params = field.readout(states[-1])
        keywords: dict[str, Any] = {"observed": states[:-1]} if observing else {}
        keywords |= field.outer_keywords(states[-1])
        result = call_loss(self.loss, hparams, params, outer_batch, what="outer_loss", **keywords)
        if not self.has_aux:
            return check_scalar(result, "outer_loss"), ()
        if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
            raise InputError(f"has_aux=True, but outer_loss returned {result!r}; expected a pair.")
        value, aux = cast("tuple[Any, Any]", result)
        return check_scalar(value, "outer_loss"), aux


class OuterGradients(NamedTuple):
    """The outer loss and its gradients; with tasks all with a leading task dimension."""

    values: Tensor
    """The loss itself."""
    aux: Any
    states: list[Tensor]
    """Gradients w.r.t. the observed states and, last, the final one."""
    hparams: Tensors


def outer_gradients(
    outer: OuterLoss, field: InnerOptimizer, layout: tree.Ravel,
    hparams_tree: Callable[[Tensors], PyTree], tasks: int | None, observing: bool = False,
) -> OuterKernel:  # fmt: skip
    """`(flat states, outer_batch, hparams leaves) -> OuterGradients` of detached inputs.

    It is over all tasks at once if there are some.

    Raises:
        CapturedTensorError: when called, if a result requires grad nevertheless.
    """

    def value(states: list[Tensor], hparams: Tensors, batch: PyTree) -> tuple[Tensor, Any]:
        trees = [layout.unflatten(y) for y in states]
        return outer(field, trees, batch, hparams_tree(hparams), observing)

    def kernel(states: list[Tensor], outer_batch: PyTree, hparams: Tensors) -> OuterGradients:
        linearized: Any = torch.func.vjp(
            partial(value, batch=outer_batch), states, hparams, has_aux=True
        )
        loss, pullback, aux = linearized
        with torch.no_grad():  # else the gradients would hold a graph as large as the loss's
            gradients = pullback(torch.ones_like(loss))
        return OuterGradients(loss, aux, *gradients)

    def plain(states: list[Tensor], outer_batch: PyTree, hparams: Tensors) -> OuterGradients:
        """The same by plain autograd; it requires grad if it depends on anything else."""
        at: Any = autodiff.points((states, hparams))
        loss, aux = value(at[0], at[1], outer_batch)
        if autodiff.depends_on_others(tree.tensors((loss, aux)), tree.leaves(at)):
            return OuterGradients(loss, aux, *at)
        gradients: Any = autodiff.pull(loss, at)
        return OuterGradients(loss.detach(), tree.map_tensors(Tensor.detach, aux), *gradients)

    def checked(states: list[Tensor], outer_batch: PyTree, hparams: Tensors) -> OuterGradients:
        run = plain if autodiff.can_record([*states, *hparams]) else kernel
        if tasks is not None:
            batch_dims = tree.pytree.tree_map(_task_dim, outer_batch)
            run = torch.func.vmap(kernel, in_dims=(0, batch_dims, None))
        with torch.enable_grad(), evaluation():
            gradients = run(states, outer_batch, hparams)
        if any_requires_grad(gradients):
            raise CapturedTensorError(
                "outer_loss uses a tensor that requires grad and is not one of its arguments: its"
                " gradient would be lost. Pass it in hparams, or detach it."
            )
        return gradients

    return checked


def _task_dim(leaf: object) -> int | None:
    return 0 if isinstance(leaf, Tensor) else None
