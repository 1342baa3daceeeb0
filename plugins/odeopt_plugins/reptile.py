"""Reptile: towards the adapted parameters."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.outer.method import TaskData, as_task_batch, task_losses
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.types import PyTree
from odeopt_plugins.common import Loss, Settings, check_values, known_settings, mean_over, optimizer


@final
@odeopt.METHODS.register("reptile", example=lambda loss: Reptile(loss, lr=0.05))
class Reptile(odeopt.Method):
    r"""The direction $\theta - \mathrm{mean}_n \psi_n$, which is not the gradient of anything.

    $\psi_n$ is the end of K steps of gradient descent on the training data, and by default on the
    validation data as well, of which Reptile makes no other use. The update is Nichol's,
    $\theta \leftarrow \theta + \epsilon(\psi - \theta)$ for plain gradient descent outside; the
    description in "Meta-Learning with Adjoint Methods" differs and does not descend. Cost: one
    gradient per step. Memory: one state. Gradients w.r.t. hparams are zero.

    Args:
        loss: the training loss.
        outer_loss: the validation loss, for `value` only; the training loss by default.
        lr: the inner learning rate.
        steps: K.
        use_validation: whether the inner loop trains on the validation data as well, on the mean
            of both losses.
        **settings: see `odeopt_plugins.common.Settings`; horizon does not apply.

    References:
        Nichol et al. 2018, "On First-Order Meta-Learning Algorithms".
    """

    @known_settings
    def __init__(
        self,
        loss: Loss,
        outer_loss: Loss | None = None,
        *,
        lr: float = 0.01,
        steps: int = 5,
        use_validation: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        if settings.get("horizon") is not None:
            raise odeopt.InputError("Reptile has no validation loss to choose a horizon by.")
        self._outer_loss = outer_loss or loss
        self._grid = odeopt.TimeGrid.from_lr(lr, steps)
        self._use_validation = use_validation
        self._on_failure: OnFailure = settings.get("on_failure", "raise")
        self._adapt, self._train = (
            optimizer(odeopt.GradientFlow(own), None, odeopt.FirstOrderAdjoint(), settings)
            for own in (loss, _both(loss) if use_validation else loss)
        )

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> odeopt.MetaGradient:
        batch = as_task_batch(task_batch)
        data = (batch.train, batch.validation) if self._use_validation else batch.train
        with torch.no_grad():
            sol = self._train.solve(
                params, data, self._grid, hparams, tasks=True, on_failure=self._on_failure
            )
            values = task_losses(self._outer_loss, sol.params, batch.validation, hparams)
            assert sol.status is not None, "there is no transform around a method"
            status = check_values(sol.status, values, self._on_failure)
            direction = tree.pytree.tree_map(
                lambda start, ends: start - mean_over(status, ends), params, sol.params
            )
        grads = odeopt.MetaGrads(direction, tree.map_tensors(torch.zeros_like, hparams))
        return odeopt.MetaGradient(mean_over(status, values), grads, sol.stats, values, status)

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        with torch.no_grad():
            return self._adapt.solve(params, train, self._grid, hparams, tasks=True).params

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        batch = as_task_batch(task_batch)
        adapted = self.adapt(params, batch.train, hparams)
        return task_losses(self._outer_loss, adapted, batch.validation, hparams)


def _both(loss: Loss) -> Loss:
    """The mean of the losses on a pair of batches."""

    def mean(params: PyTree, batches: tuple[PyTree, PyTree], hparams: PyTree = None) -> Tensor:
        return torch.stack([call_loss(loss, hparams, params, batch) for batch in batches]).mean()

    return mean
