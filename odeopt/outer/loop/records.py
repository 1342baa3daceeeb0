"""A recorded training loop as an update rule: step k takes the k-th record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CapturedTensorError, InputError
from odeopt.inner import GradientRule
from odeopt.inner.clipping import GradientTransform
from odeopt.inner.leafwise import LeafwiseRule
from odeopt.inner.module import ModuleLoss
from odeopt.inner.rule import RuleState
from odeopt.inner.stream import Stream
from odeopt.outer.loop.tape import LoopTape
from odeopt.outer.loop.torch_optim import Groups, OptimizerMemory, place_in
from odeopt.solver.base import RecordedStep
from odeopt.solver.dynamics import Theta
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.captured import captured_values
from odeopt.tools.shown import shown
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
    in_batches: list[Tensor]
    """Tensors in batches that require grad."""


@dataclass(frozen=True)
class Placeholder:
    """Stands in a recorded batch for a tensor that requires grad."""

    index: int


class Call(NamedTuple):
    """A loss and what it is called with, beside the model."""

    loss: StepLoss
    batch: PyTree
    hparams: PyTree
    what: str = "loss"


def run_call(model: Any, call: Call) -> Tensor:
    """The objective of every recorded module: what a call gives with this model."""
    return call_loss(call.loss, call.hparams, model, call.batch, what=call.what, of="model")


class Records:
    """What each step was given. Batches are kept by reference.

    Attributes:
        steps: the loss and the batch of each, with `Placeholder` for tensors that require grad.
        in_batches: these tensors.
        drew: whether a step drew random numbers.
        tape: the graphs of the steps, where they are kept.
        found: how many of them were used in place of making a step again.
    """

    tape: LoopTape | None = None
    found: int = 0

    def __init__(self) -> None:
        self.steps: list[tuple[StepLoss, PyTree]] = []
        self.in_batches: list[Tensor] = []
        self.drew = False

    def append(self, loss: StepLoss, batch: PyTree) -> None:
        """Record a step; leaves of the batch that require grad are noted."""
        self.steps.append((loss, tree.map_tensors(self._lift, batch)))

    def _lift(self, leaf: Tensor) -> Any:
        if not leaf.requires_grad:
            return leaf
        if not leaf.is_leaf:
            raise CapturedTensorError(
                "the batch holds a tensor that was computed from others that require grad: compute"
                " it in the loss instead, and pass what it is computed from as hparams to"
                " RecordedLoop (or pass a leaf tensor in the batch)."
            )
        return Placeholder(place_in(self.in_batches, leaf))

    def why_not_alike(self) -> str | None:
        """Why steps differ too much to be compiled; None if they do not."""
        if self.drew:
            return "steps draw random numbers, which a trace would draw anew."
        if any(loss is not self.steps[0][0] for loss, _ in self.steps):
            return "steps have different losses: pass the same function object to each."
        outlines = [tree.partition(batch, lambda leaf: False)[0] for _, batch in self.steps]
        if any(outline != outlines[0] for outline in outlines):
            return "the batches of the steps differ in structure."
        return None


class RecordedRule(GradientRule):
    """The update of a translated optimiser, with the records' losses.

    Its state holds the parameters of each group joined into one vector, so that a step works on few
    long vectors. Its buffers are the running statistics and the loss of the last step, which thus
    is known without another evaluation.

    Args:
        rule: the translation.
        groups: how it joins parameters.
        memory: what the optimiser remembers of earlier steps.
        problem: the module.
        records: what the steps were given.
        transform: what is done to gradients first.
        loss: None where each step gets its number, by which any loss and batch is looked up in
            Python; or the loss of all steps, each of which gets its batch, which can be compiled.
    """

    def __init__(
        self, rule: LeafwiseRule, groups: Groups, memory: OptimizerMemory, problem: ModuleLoss,
        records: Records, transform: GradientTransform | None, loss: StepLoss | None = None,
    ) -> None:  # fmt: skip
        like = next(iter(problem.params.values()))
        buffers = {"loss": like.new_zeros(()), "statistics": problem.buffers or {}}
        super().__init__(self._loss_of_step, transform, buffers=buffers)
        self._rule, self._groups, self._memory = rule, groups, memory
        self._problem, self._records, self._same_loss = problem, records, loss

    def stream(self, seed: int) -> Stream:
        """What each step gets for its batch; the seed is that of random numbers in losses."""
        steps = self._records.steps
        if self._same_loss is None:
            return Stream(torch.tensor, seed)
        return Stream(lambda k: steps[k][1], length=len(steps))

    @override
    def captured(self) -> tuple[Any, ...]:
        own = (self._same_loss, self._problem.loss, self._rule, self._transform)
        return captured_values(own)

    @override
    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        return super().init(self._groups.join(params), hparams)

    @override
    def readout(self, state: PyTree) -> PyTree:
        return self._groups.split(state.params)

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        slots = self._memory.slots
        if slots is None:
            return self._rule.init_slots(params)
        return {name: self._groups.join(values) for name, values in slots.items()}

    @override
    def advance(
        self, k: Tensor, lr: Tensor, grads: PyTree, state: RuleState, buffers: PyTree,
        hparams: PyTree,
    ) -> RuleState:  # fmt: skip
        if self._transform is not None:
            grads = self._groups.join(self._transform(self._groups.split(grads)))
        params, slots = self.apply(k, lr, grads, state.params, state.slots, hparams)
        return RuleState(params, slots, buffers)

    @override
    def apply(
        self, k: Tensor, lr: Tensor, grads: PyTree, params: PyTree, slots: PyTree, hparams: PyTree
    ) -> tuple[PyTree, PyTree]:
        inputs = cast("Inputs", hparams)
        rates = inputs.rates.index_select(0, k.to(inputs.rates.device, torch.long).reshape(1))[0]
        own = {"rates": rates, "options": inputs.options}
        return self._rule.apply(k + self._memory.steps, lr, grads, params, slots, own)

    @override
    def run_before(self, batch: PyTree, y: Tensor, theta: Theta) -> RecordedStep | None:
        tape = self._records.tape
        step = None if tape is None or self._same_loss is not None else tape.get(int(batch))
        if step is None or not (step.start is y or torch.equal(step.start, y)):
            return None
        self._records.found += 1
        return step.seen_with(theta)

    def outer(self, params: PyTree, call: Call, inputs: Inputs, buffers: PyTree) -> Tensor:
        """An outer loss of the final parameters, in evaluation mode."""
        evaluate, statistics = self._problem.evaluate, buffers["statistics"]
        return evaluate(params, call, inputs.frozen, statistics or None)

    def _loss_of_step(
        self, params: PyTree, item: PyTree, inputs: Inputs, buffers: PyTree
    ) -> tuple[Tensor, PyTree]:
        return self.loss_at(self._groups.split(params), item, inputs, buffers)

    def loss_at(
        self, params: PyTree, item: PyTree, inputs: Inputs, buffers: PyTree
    ) -> tuple[Tensor, PyTree]:
        """The loss of a step at parameters by name, and the buffers after it."""
        loss, batch = self._same_loss, item
        if loss is None:
            loss, batch = self._records.steps[int(item)]

        def real(leaf: Any) -> Any:
            return inputs.in_batches[leaf.index] if isinstance(leaf, Placeholder) else leaf

        call = Call(loss, tree.pytree.tree_map(real, batch), inputs.hparams)
        statistics = buffers["statistics"]
        result: Any = self._problem.loss(params, call, inputs.frozen, statistics or None)
        value, statistics = result if self._problem.buffers else (result, statistics)
        last = value.detach().to(buffers["loss"].dtype)
        return value, {"loss": last, "statistics": statistics}


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
        raise InputError(
            f"loss is {shown(loss)}; expected a function loss(model, batch) -> scalar."
        )
