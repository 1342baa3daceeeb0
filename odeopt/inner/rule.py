"""What an update rule is: an inner optimiser that is a recurrence rather than a flow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CapturedTensorError, InputError
from odeopt.inner.base import Binder, Bound, InnerOptimizer
from odeopt.inner.clipping import GradientTransform
from odeopt.tools import autodiff, tree
from odeopt.tools.arguments import call_loss, check_integer, check_scalar
from odeopt.tools.shown import shown
from odeopt.tools.types import Loss, PyTree


class UpdateRule(InnerOptimizer):
    r"""A recurrence $y_{k+1} = U(k, \alpha_k, y_k)$, where $\alpha_k$ is the grid's k-th step.

    It takes no solver. The exact adjoint differentiates one update at a time. A subclass writes
    `update`; `init` and `readout` say what the state is beside the parameters.

    References:
        Maclaurin et al. 2015, "Gradient-based Hyperparameter Optimization through Reversible
        Learning", for the gradient through a recurrence.
    """

    @property
    def pull_gradients(self) -> int:
        """Gradient evaluations of the derivative of a step, beside its Hessian-vector product."""
        return 0

    @override
    def bind(self, binder: Binder[Bound]) -> Bound:
        return binder.rule(self)

    @abstractmethod
    def update(
        self, k: Tensor, lr: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        """The next state; k (floating-point) and lr are 0-dim tensors of the state's dtype."""


class RuleState(NamedTuple):
    """The state of a `GradientRule`."""

    params: PyTree
    slots: PyTree
    """What the rule remembers, e.g. moments."""
    buffers: PyTree
    """What the model remembers, e.g. running statistics; () if there is nothing."""


class GradientRule(UpdateRule):
    r"""A rule that looks at the loss through its gradient only: $(u, s)_{k+1} = A(u, s, g(u))$.

    Its adjoint pulls through A first and then multiplies by the Hessian, once per step, so that
    a subclass writes `init_slots` and `apply` alone. Slots s are a pytree of any shapes.

    Cost: one gradient per step, and one Hessian-vector product per step backward.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor; with
            buffers it is also called with the keyword `buffers` and returns
            (scalar, new buffers).
        gradient_transform: what is done to the gradient first, e.g. `clip_by_norm(1.0)`.
        micro_batches: the loss is a mean over the examples of the batch, and is taken over this
            many equal pieces one after the other, forward and backward, so that only one piece's
            graph is alive at a time. In exchange the backward sweep takes one gradient more.
        buffers: initial buffers, a pytree of tensors of the params' dtype. They are part of the
            state and replayed with it, but carry no gradient, as everywhere in torch. The outer
            loss gets the final ones as the keyword `buffers`.

    Raises:
        InputError: if the loss is no function, or micro_batches is not a positive integer; in the
            solve, if the loss returns anything but what is said above.
    """

    def __init__(
        self, loss: Loss, gradient_transform: GradientTransform | None = None,
        micro_batches: int = 1, buffers: PyTree = None,
    ) -> None:  # fmt: skip
        if not callable(loss):
            raise InputError(f"loss is {shown(loss)}; expected a function loss(params, batch).")
        self._loss = loss
        self._transform = gradient_transform
        self.micro_batches = check_integer(micro_batches, "micro_batches")
        self._buffers = _check_buffers(buffers)

    @override
    def _given(self) -> Mapping[str, Any]:
        return {"gradient_transform": self._transform}

    @property
    @override
    def pull_gradients(self) -> int:
        return int(self.micro_batches > 1)

    @property
    def joins(self) -> bool:
        """Whether `apply` does the same to each entry, whatever tree it is in.

        All parameters may then come as one vector, and each slot as another, which saves time.
        """
        return False

    @override
    def bind(self, binder: Binder[Bound]) -> Bound:
        return binder.gradient_rule(self)

    @abstractmethod
    def init_slots(self, params: PyTree) -> PyTree:
        """What the rule remembers before the first step."""

    @abstractmethod
    def apply(
        self, k: Tensor, lr: Tensor, grads: PyTree, params: PyTree, slots: PyTree, hparams: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The next (params, slots), elementwise in the gradient or nearly so."""

    @override
    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        buffers = () if self._buffers is None else tree.map_tensors(Tensor.clone, self._buffers)
        return RuleState(params, self.init_slots(params), buffers), ()

    @override
    def readout(self, state: PyTree) -> PyTree:
        return state.params

    @override
    def outer_keywords(self, state: PyTree) -> dict[str, Any]:
        if self._buffers is None:
            return {}
        return {"buffers": tree.map_tensors(Tensor.detach, state.buffers)}

    @override
    def update(
        self, k: Tensor, lr: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        grads, buffers = self.gradient(state, hparams, batch)
        return self.advance(k, lr, grads, state, buffers, hparams)

    def advance(
        self, k: Tensor, lr: Tensor, grads: PyTree, state: RuleState, buffers: PyTree,
        hparams: PyTree,
    ) -> RuleState:  # fmt: skip
        """The next state, from the gradient and the buffers that came with it."""
        if self._transform is not None:
            grads = self._transform(grads)
        params, slots = self.apply(k, lr, grads, state.params, state.slots, hparams)
        return RuleState(params, slots, buffers)

    def run_before(self, batch: PyTree, y: Tensor, theta: Any) -> Any:
        """The step from a flat state, with its graph, if it has been made; None by default.

        Args:
            batch: the batch of the step.
            y: the state.
            theta: the inputs for which gradients are wanted, as `solver.dynamics.Theta`.
        """
        del batch, y, theta

    def gradient(self, state: RuleState, hparams: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        """The gradient of the loss and the buffers after it, piece by piece."""
        total: PyTree = None
        buffers = state.buffers
        for piece in self.pieces(batch):
            grads, buffers = self.piece_gradient(state.params, hparams, piece, buffers)
            total = grads if total is None else tree.pytree.tree_map(torch.add, total, grads)
        return total, buffers

    def piece_gradient(
        self, params: PyTree, hparams: PyTree, piece: PyTree, buffers: PyTree
    ) -> tuple[PyTree, PyTree]:
        """A piece's share in the gradient, and the buffers after it."""

        def value(params: PyTree) -> tuple[Tensor, PyTree]:
            return self.value(params, hparams, piece, buffers)

        grads, after = autodiff.gradient(value, params, has_aux=True)
        return grads, tree.map_tensors(Tensor.detach, after)

    def value(
        self, params: PyTree, hparams: PyTree, batch: PyTree, buffers: PyTree
    ) -> tuple[Tensor, PyTree]:
        """A piece's share in the loss, and the buffers after it."""
        buffers = tree.map_tensors(Tensor.detach, buffers)
        if self._buffers is None:
            value = call_loss(self._loss, hparams, params, batch)
        else:
            value = call_loss(self._loss, hparams, params, batch, buffers=buffers)
            if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != 2:
                raise InputError(
                    f"with buffers, loss returned {shown(value)}; expected (scalar, new buffers)."
                )
            value, buffers = cast("tuple[Any, Any]", value)
        value = check_scalar(value, "loss")
        return (value if self.micro_batches == 1 else value / self.micro_batches), buffers

    def pieces(self, batch: PyTree) -> list[PyTree]:
        """The micro-batches of a batch."""
        count = self.micro_batches
        if count == 1:
            return [batch]
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in tree.tensors(batch)}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        if size is None or size % count:
            raise InputError(
                f"micro_batches is {count}, but the leading dimensions of the batch are"
                f" {sorted(map(str, sizes))}; expected a single one, divisible by {count}."
            )
        step = size // count

        def cut(start: int) -> PyTree:
            return tree.map_tensors(lambda leaf: leaf[start : start + step], batch)

        return [cut(i * step) for i in range(count)]


def _check_buffers(buffers: PyTree) -> PyTree:
    if any(leaf.requires_grad for leaf in tree.tensors(buffers)):
        raise CapturedTensorError(
            "a buffer requires grad: buffers carry no gradient. Detach it, or pass it in hparams."
        )
    return buffers
