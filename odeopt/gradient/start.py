"""Where a solve begins, as a differentiable function of params and hparams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odeopt.engine.problem import Problem, Start, assemble, start
from odeopt.gradient.probe import refuse_captured
from odeopt.grid import TimeGrid
from odeopt.inner.base import InnerOptimizer
from odeopt.tools import tree
from odeopt.tools.transforms import requires_grad
from odeopt.tools.types import PyTree, Tensors


class Beginning:
    """The initial state as a differentiable function of params and hparams."""

    def __init__(
        self, field: InnerOptimizer, params: PyTree, hparams: PyTree, state: PyTree
    ) -> None:
        self._field, self._state = field, detach(state)
        tree.ravel(params, "params")  # checks it
        self.params_layout, self._params, _ = tree.partition(detach(params))
        self.hparams_layout, self.hparams, self._constants = tree.partition(detach(hparams))

    def problem(self, batch: PyTree, grid: TimeGrid, tasks: bool) -> Problem:
        """The detached problem; keeps the pullback through `field.init`, which is called once.

        Raises:
            CapturedTensorError: if the initial state requires grad, though no argument does.
        """
        made: list[Start] = []

        def flat(params: Tensors, hparams: Tensors) -> tuple[tuple[Tensor, Tensors], Tensors]:
            begin = self._start(params, hparams)
            made.append(begin)
            return (begin.y0, begin.diff), begin.data

        with torch.enable_grad():
            linearized: Any = torch.func.vjp(flat, self._params, self.hparams, has_aux=True)
        (y0, diff), self._pullback, data = linearized
        refuse_captured((y0, diff, data))
        begin = replace(made[0], y0=y0, diff=diff, data=data)  # out of the transform
        return assemble(begin, batch, grid, tasks, requires_grad).detach()

    def hparams_tree(self, diff: Tensors) -> PyTree:
        """Hparams with other differentiable leaves."""
        return self.hparams_layout.merge(diff, self._constants)

    def pull(self, g_y0: Tensor, g_shared: Tensors) -> tuple[Tensors, Tensors]:
        """Gradients w.r.t. the leaves of params and hparams."""
        return self._pullback((g_y0, g_shared))

    def _start(self, params: Tensors, hparams: Tensors) -> Start:
        return start(
            self._field,
            self.params_layout.merge(params, ()),
            self.hparams_tree(hparams),
            tree.is_differentiable,
            self._state,
        )


def detach(value: PyTree) -> PyTree:
    """A tree with its tensors detached."""
    return tree.map_tensors(Tensor.detach, value)
