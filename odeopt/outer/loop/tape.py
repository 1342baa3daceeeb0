"""The graphs of a loop's steps, kept as the steps are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.errors import NondeterminismError
from odeopt.solver.base import RecordedStep, StepGradient
from odeopt.solver.dynamics import Theta
from odeopt.tools import tree
from odeopt.tools.memory import measured
from odeopt.tools.transforms import versions
from odeopt.tools.types import PyTree


class RunStep(NamedTuple):
    """A step of a loop as it was run: where it began, and its end with the way back."""

    start: Tensor
    step: RecordedStep
    sums: Tensor
    """Of its batch, as `sums_of` has them, so that a later change is noticed."""
    versions: list[int]
    """Of hparams, likewise."""

    def seen_with(self, theta: Theta) -> RecordedStep:
        """The step with gradients for all inputs of the whole loop.

        When it was run it knew the learning rates so far, and no tensors of later batches: its
        gradients w.r.t. these are zero.
        """

        def pullback(lam: Tensor) -> StepGradient:
            own = self.step.pullback(lam)
            rates, *others = own.theta.shared
            all_rates, *rest = theta.shared
            rates_of_all = torch.cat([rates, all_rates.new_zeros(all_rates[len(rates) :].shape)])
            later = [leaf.new_zeros(leaf.shape) for leaf in rest[len(others) :]]
            return own._replace(theta=Theta((rates_of_all, *others, *later), ()))

        return RecordedStep(self.step.end, pullback)


def sums_of(batch: PyTree) -> Tensor:
    """The sum of each tensor of a batch, shape [tensors], on the CPU or where the batch is."""
    sums = [leaf.detach().abs().sum() if leaf.is_complex() else leaf.detach().sum()
            for leaf in tree.tensors(batch)]  # fmt: skip
    return torch.stack([total.double() for total in sums]) if sums else torch.zeros(0)


class LoopTape:
    """The steps of a loop with their graphs; where memory is short, the last of them.

    Args:
        checkpoints: says how many graphs there may be.
        state: one of the loop's states, flat.
    """

    def __init__(self, checkpoints: CheckpointSchedule, state: Tensor) -> None:
        self._checkpoints = checkpoints.on(state.device).fit(state.nbytes, None)
        self._state_bytes = state.nbytes
        self._graph_bytes = 0
        self._can_measure = True
        self._measured: set[object] = set()
        self._steps: dict[int, RunStep] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def check_unchanged(self, batches: Sequence[PyTree], hparams: PyTree) -> None:
        """Raise `NondeterminismError` if what a step was given has changed since.

        Args:
            batches: of all steps of the loop.
            hparams: of the loop.
        """
        now = versions(tree.tensors(hparams))
        for k, own in self._steps.items():
            if own.versions != now:
                raise NondeterminismError(
                    f"hparams were changed in place after step {k} of the loop: change them after"
                    " backward()."
                )
            if not torch.equal(own.sums.nan_to_num(), sums_of(batches[k]).nan_to_num()):
                raise NondeterminismError(
                    f"the batch of step {k} is not what it was when the step was made: it, or the"
                    " memory behind it, was changed in place. Pass copies."
                )

    def get(self, k: int) -> RunStep | None:
        """Step k, if its graph is kept."""
        return self._steps.get(k)

    @property
    def has_room(self) -> bool:
        """Whether graphs are kept at all."""
        own = self._checkpoints
        return self._can_measure and own.graphs(self._graph_bytes, self._state_bytes, 1) > 0

    def make(
        self, make: Callable[[], RecordedStep], kind: object, shared: Iterable[Tensor]
    ) -> RecordedStep:
        """A step with its graph, which is measured when one of its kind first comes.

        Args:
            make: makes it.
            kind: what steps have in common whose graphs are of one size.
            shared: tensors that are alive anyway.
        """
        if kind in self._measured:
            return make()
        step, size = measured(make, shared)
        self._measured.add(kind)
        self._can_measure &= size is not None
        self._graph_bytes = max(self._graph_bytes, size or 0)
        return step

    def keep(self, k: int, step: RunStep) -> None:
        """Keep step k; the first ones go if there is no room for all."""
        if not self._can_measure:
            self._steps.clear()
            return
        self._steps[k] = step
        count = len(self._steps)
        room = self._checkpoints.graphs(self._graph_bytes, self._state_bytes, count)
        for _ in range(count - room):
            del self._steps[next(iter(self._steps))]
