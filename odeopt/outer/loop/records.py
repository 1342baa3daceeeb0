"""A recorded training loop as an update rule: step k takes the k-th record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from odeopt.errors import CapturedTensorError, InputError
from odeopt.inner import GradientRule
from odeopt.inner.clipping import GradientTransform
from odeopt.inner.leafwise import LeafwiseRule
from odeopt.inner.module import ModuleLoss
from odeopt.inner.stream import Stream
from odeopt.outer.loop.torch_optim import Groups, Taken
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.captured import captured_values
from odeopt.tools.types import PyTree

StepLoss = Callable[..., Tensor]
"""`loss(model, batch)`, or `loss(model, batch, hparams)` if there are hparams; a scalar."""


class Inputs(NamedTuple):
    """Everything that a recorded loop can be differentiated w.r.t. beside its parameters."""

    rates: Tensor
    """The learning rates, shape [steps, groups]."""
    options: list[Tensor]
    """Options of the optimiser that are tensors to be learned."""
    frozen: dict[str, Tensor] | None
    """Parameters that the optimiser does not move."""
    hparams: PyTree
    """The user's own."""
    found: list[Tensor]
    """Tensors in batches that require grad."""


@dataclass(frozen=True)
class Found:
    """Stands in a recorded batch for a tensor that requires grad."""

    index: int


class Call(NamedTuple):
    """A loss and what it is called with, beside the model."""

    loss: StepLoss
    batch: PyTree
    hparams: PyTree
    what: str = "loss"

    def on(self, model: nn.Module) -> Tensor:
        """The loss of a model."""
        return call_loss(self.loss, self.hparams, model, self.batch, what=self.what, of="model")


def run_call(model: Any, call: Call) -> Tensor:
    """`call.on(model)`, the objective of every recorded module."""
    return call.on(model)


class Records:
    """What each step was given. Batches are kept by reference.

    Attributes:
        found: tensors in batches that require grad.
        drew: whether a step drew random numbers.
    """

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self.drew = False
        self._steps: list[tuple[StepLoss, PyTree]] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> list[tuple[StepLoss, PyTree]]:
        """The loss and the batch of each step, with `Found` for tensors that require grad."""
        return self._steps

    def append(self, loss: StepLoss, batch: PyTree) -> None:
        """Record a step; leaves of the batch that require grad are noted."""
        self._steps.append((loss, tree.map_tensors(self._lift, batch)))

    def drop(self) -> None:
        """Forget the last step."""
        self._steps.pop()

    def _lift(self, leaf: Tensor) -> Any:
        if not leaf.requires_grad:
            return leaf
        if not leaf.is_leaf:
            raise CapturedTensorError(
                "the batch holds a tensor that was computed from others that require grad: compute"
                " it in the loss instead, and pass what it is computed from as hparams to"
                " RecordedLoop (or pass a leaf tensor in the batch)."
            )
        for index, known in enumerate(self.found):
            if known is leaf:
                return Found(index)
        self.found.append(leaf)
        return Found(len(self.found) - 1)


class Feed(ABC):
    """How the steps of a rule get the records."""

    loss: StepLoss | None = None
    """The loss of every step, if it is one."""

    @abstractmethod
    def stream(self, seed: int) -> Stream:
        """What each step gets for its batch; the seed is that of random numbers in losses."""

    @abstractmethod
    def call(self, item: PyTree, inputs: Inputs) -> Call:
        """The loss that a step is to evaluate, from what the stream gave it."""


@final
class ByNumber(Feed):
    """Each step gets its number: any losses and batches, which are looked up in Python."""

    def __init__(self, records: Records) -> None:
        self._records = records

    @override
    def stream(self, seed: int) -> Stream:
        return Stream(torch.tensor, seed)

    @override
    def call(self, item: PyTree, inputs: Inputs) -> Call:
        loss, batch = self._records.steps[int(item)]
        return Call(loss, _put_back(batch, inputs), inputs.hparams)


@final
class Alike(Feed):
    """Each step gets its batch: one loss, and batches of one structure, which can be compiled."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.loss, _ = records.steps[0]

    @classmethod
    def why_not(cls, records: Records) -> str | None:
        """Why steps differ too much for it; None if they do not."""
        if records.drew:
            return "steps draw random numbers, which a trace would draw anew."
        if any(loss is not records.steps[0][0] for loss, _ in records.steps):
            return "steps have different losses: pass the same function object to each."
        outlines = [tree.partition(batch, _never)[0] for _, batch in records.steps]
        if any(outline != outlines[0] for outline in outlines):
            return "the batches of the steps differ in structure."
        return None

    @override
    def stream(self, seed: int) -> Stream:
        return Stream(lambda k: self._records.steps[k][1], length=len(self._records))

    @override
    def call(self, item: PyTree, inputs: Inputs) -> Call:
        assert self.loss is not None, "set when it is made"
        return Call(self.loss, _put_back(item, inputs), inputs.hparams)


def _put_back(batch: PyTree, inputs: Inputs) -> PyTree:
    """The batch with the tensors that are differentiated in the places of `Found`."""

    def real(leaf: Any) -> Any:
        return inputs.found[leaf.index] if isinstance(leaf, Found) else leaf

    return tree.pytree.tree_map(real, batch)


def _never(leaf: object) -> bool:
    del leaf
    return False


class RecordedRule(GradientRule):
    """The update of a translated optimiser, with the records' losses.

    Its buffers are the running statistics and the loss of the last step, which thus is known
    without another evaluation.
    """

    def __init__(
        self, rule: LeafwiseRule, groups: Groups, taken: Taken, problem: ModuleLoss, feed: Feed,
        transform: GradientTransform | None,
    ) -> None:  # fmt: skip
        like = next(iter(problem.params.values()))
        buffers = {"loss": like.new_zeros(()), "statistics": problem.buffers or {}}
        super().__init__(self._loss_of_step, transform, buffers=buffers)
        self._rule, self._groups, self._taken = rule, groups, taken
        self._problem, self._feed = problem, feed

    @override
    def captured(self) -> tuple[Any, ...]:
        own = (self._feed.loss, self._problem.loss, self._rule, self._transform)
        return captured_values(own)

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        slots = self._taken.slots
        if slots is None:
            return self._rule.init_slots(self._groups.join(params))
        return {name: self._groups.join(values) for name, values in slots.items()}

    @override
    def apply(
        self, k: Tensor, lr: Tensor, grads: PyTree, params: PyTree, slots: PyTree, hparams: PyTree
    ) -> tuple[PyTree, PyTree]:
        inputs = cast("Inputs", hparams)
        rates = inputs.rates.index_select(0, k.to(inputs.rates.device, torch.long).reshape(1))[0]
        own = {"rates": rates, "options": inputs.options}
        index, join = k + self._taken.steps, self._groups.join
        joined, slots = self._rule.apply(index, lr, join(grads), join(params), slots, own)
        return self._groups.split(joined), slots

    def outer(self, params: PyTree, call: Call, inputs: Inputs, buffers: PyTree) -> Tensor:
        """An outer loss of the final parameters, in evaluation mode."""
        evaluate, statistics = self._problem.evaluate, buffers["statistics"]
        return evaluate(params, call, inputs.frozen, statistics or None)

    def _loss_of_step(
        self, params: PyTree, item: PyTree, inputs: Inputs, buffers: PyTree
    ) -> tuple[Tensor, PyTree]:
        call = self._feed.call(item, inputs)
        statistics = buffers["statistics"]
        found: Any = self._problem.loss(params, call, inputs.frozen, statistics or None)
        value, statistics = found if self._problem.buffers else (found, statistics)
        loss = value.detach().to(buffers["loss"].dtype)
        return value, {"loss": loss, "statistics": statistics}


def check_loss(loss: Any) -> None:
    """Raise `InputError` unless the loss is a function; a tensor gets advice."""
    if isinstance(loss, Tensor):
        raise InputError(
            "step was given a loss tensor, but the backward sweep runs each step again, so that it"
            " needs the function. In place of\n"
            "    loss = criterion(inner.model(x), y)\n"
            "    inner.step(loss)\n"
            "write\n"
            "    inner.step(lambda model, batch: criterion(model(batch[0]), batch[1]), (x, y))"
        )
    if not callable(loss):
        raise InputError(f"loss is {loss!r}; expected a function loss(model, batch) -> scalar.")
