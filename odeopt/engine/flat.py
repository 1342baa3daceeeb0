"""Inner optimisers on flat vectors: what the kernels work with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.inner.base import InnerOptimizer
from odeopt.inner.field import Field, GradientField
from odeopt.inner.rule import GradientRule, UpdateRule
from odeopt.solver.base import FlatRule, RecordedStep, StepGradient, reached
from odeopt.solver.dynamics import (
    Cotangents,
    Data,
    Differentiate,
    FlatField,
    Theta,
    add_thetas,
)
from odeopt.tools import autodiff, tree
from odeopt.tools.seeds import random_state, restore_random_state, seeded
from odeopt.tools.tree import Partition, Ravel
from odeopt.tools.types import PyTree

Potential = Callable[[Tensor, Tensor, Theta, Data], Tensor]


class Layout(NamedTuple):
    """How flat states and inputs become the pytrees that a field is written in."""

    state: Ravel
    shared: Partition
    """Of the pair (consts, hparams)."""
    batch: Partition

    def unpack(self, y: Tensor, theta: Theta, data: Data) -> tuple[Any, Any, Any, Any]:
        """(state, consts, hparams, batch) as pytrees."""
        consts, hparams = self.shared.merge(theta.shared, data.shared)
        return self.state.unflatten(y), consts, hparams, self.batch.merge(theta.batch, data.batch)


class BoundField(FlatField):
    """A field that reads and writes flat vectors."""

    records = True

    def __init__(self, inner: Field, layout: Layout) -> None:
        self._field = inner
        self.layout = layout

    @override
    def velocity(self, t: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        potential = self.potential
        if potential is not None and self._field.is_slope:
            return torch.neg(autodiff.gradient(lambda u: potential(t, u, theta, data), y))
        slope = self._field.velocity(t, *self.layout.unpack(y, theta, data))
        return self.layout.state.flatten(slope, "the velocity")

    @property
    @override
    def potential(self) -> Potential | None:
        inner = self._field
        if not isinstance(inner, GradientField):
            return None
        return lambda t, y, theta, data: inner.potential(t, *self.layout.unpack(y, theta, data))


class BoundRule(FlatRule):
    """An update rule that reads and writes flat vectors."""

    def __init__(self, rule: UpdateRule, layout: Layout) -> None:
        self._rule = rule
        self.layout = layout

    @override
    def update(self, k: Tensor, lr: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        after = self._rule.update(k, lr, *self.layout.unpack(y, theta, data))
        return self.layout.state.flatten(after, "the updated state")

    @override
    def pull(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, lam: Tensor,
        theta: Theta, data: Data,
    ) -> StepGradient:  # fmt: skip
        y1, pullback = self.record(differentiate, k, lr, y, theta, data)
        return pullback(lam)._replace(end=reached(y1))

    @override
    def record(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, theta: Theta,
        data: Data,
    ) -> RecordedStep:  # fmt: skip
        del differentiate  # there is no gradient of its own to differentiate

        def updated(lr: Tensor, y: Tensor, theta: Theta) -> Tensor:
            return self.update(k, lr, y, theta, data)

        y1, linearized = autodiff.vjp(updated, lr, y, theta)

        def pullback(lam: Tensor) -> StepGradient:
            g_lr, g_y, g_theta = linearized(lam)
            return StepGradient(g_y, torch.zeros_like(k), g_lr, g_theta)

        return RecordedStep(y1, pullback)


class BoundGradientRule(BoundRule):
    r"""A gradient rule on flat vectors, whose adjoint takes one Hessian-vector product per step.

    With $y_1 = A(y, g(u))$: first the pullback of A gives cotangents of y and of g, then
    $\bar u \mathrel{+}= \nabla^2 L\, \bar g$, piece by piece of the batch.
    """

    def __init__(self, rule: GradientRule, layout: Layout) -> None:
        if rule.joins:
            rule, layout = _joined(rule, layout)
        super().__init__(rule, layout)
        self._gradient_rule = rule
        self.records = rule.micro_batches == 1
        state = _without_values(layout)
        self._params = tree.layout_of(state.params)
        self._known = sum(leaf.numel() for leaf in tree.tensors((state.params, state.slots)))

    @override
    def pull(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, lam: Tensor,
        theta: Theta, data: Data,
    ) -> StepGradient:  # fmt: skip
        """The end is compared without the buffers, on which no derivative depends."""
        at = _Step(k, lr, y, theta, data)
        y1, pullback = self._apply(at, self._linearize(differentiate, at))
        return pullback(lam)._replace(end=reached(y1[: self._known]))

    @override
    def record(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, theta: Theta,
        data: Data,
    ) -> RecordedStep:  # fmt: skip
        """One graph of all: pulling it is one call of autograd."""
        batch = self.layout.batch.merge(theta.batch, data.batch)
        known = self._gradient_rule.run_before(batch, y, theta)
        return super().record(differentiate, k, lr, y, theta, data) if known is None else known

    def _apply(self, at: _Step, gradient: _Gradient) -> RecordedStep:
        """The rule applied to a gradient, which is pulled after it."""
        k, lr, y, theta, data = at
        params = self._params

        def advanced(lr: Tensor, y: Tensor, g: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
            now, _, hparams, _ = self.layout.unpack(y, theta._replace(shared=shared), data)
            grads, buffers = params.unflatten(g), gradient.buffers
            after = self._gradient_rule.advance(k, lr, grads, now, buffers, hparams)
            return self.layout.state.flatten(after, "the updated state")

        y1, linearized = autodiff.vjp(advanced, lr, y, gradient.value, theta.shared)

        def pullback(lam: Tensor) -> StepGradient:
            g_lr, g_y, g_grads, g_shared = linearized(lam)
            total = Theta(g_shared, tuple(torch.zeros_like(leaf) for leaf in theta.batch))
            for product in gradient.products:
                pulled = product(-g_grads)
                g_y = torch.cat([g_y[: params.size] + pulled.y, g_y[params.size :]])
                total = add_thetas([total, pulled.theta])
            return StepGradient(g_y, torch.zeros_like(k), g_lr, total)

        return RecordedStep(y1, pullback)

    def _linearize(self, differentiate: Differentiate, at: _Step) -> _Gradient:
        if self._gradient_rule.micro_batches > 1:
            return self._linearize_pieces(differentiate, at)
        k, _, y, theta, data = at
        buffers = self.layout.unpack(y, theta, data)[0].buffers
        field = self._piece_field(buffers, 0)
        point = differentiate(field, k, y[: self._params.size], theta, data)
        return _Gradient(torch.neg(point.value), [point.pullback], buffers)

    def _linearize_pieces(self, differentiate: Differentiate, at: _Step) -> _Gradient:
        """The whole gradient, and each piece's Hessian-vector product.

        A piece meets the same buffers and random numbers twice; its graph is freed on return.
        """
        k, _, y, theta, data = at
        params, (state, _, hparams, batch) = self._params, self.layout.unpack(y, theta, data)
        buffers, total = state.buffers, torch.zeros_like(y[: params.size])
        products: list[Callable[[Tensor], Cotangents]] = []

        def product(field: _PieceField, random: Any, cotangent: Tensor) -> Cotangents:
            with nullcontext() if random is None else seeded(0, y.device):
                restore_random_state(random)
                return differentiate(field, k, y[: params.size], theta, data).pullback(cotangent)

        for index, piece in enumerate(self._gradient_rule.pieces(batch)):
            field = self._piece_field(buffers, index)
            products.append(partial(product, field, random_state()))
            grads, buffers = self._gradient_rule.piece_gradient(
                state.params, hparams, piece, buffers
            )
            total = total + params.flatten(grads, "the gradient")
        return _Gradient(total, products, buffers)

    def _piece_field(self, buffers: PyTree, index: int) -> _PieceField:
        return _PieceField(self._gradient_rule, self.layout, self._params, buffers, index)


class _Joined(GradientRule):
    """A rule on parameters that are joined into one vector."""

    def __init__(self, rule: GradientRule, params: Ravel) -> None:
        super().__init__(rule.value, micro_batches=rule.micro_batches)
        self._rule, self._params = rule, params

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        raise AssertionError("states begin with the rule itself")

    @override
    def apply(
        self, k: Tensor, lr: Tensor, grads: PyTree, params: PyTree, slots: PyTree, hparams: PyTree
    ) -> tuple[PyTree, PyTree]:
        return self._rule.apply(k, lr, grads, params, slots, hparams)

    @override
    def value(
        self, params: PyTree, hparams: PyTree, batch: PyTree, buffers: PyTree
    ) -> tuple[Tensor, PyTree]:
        return self._rule.value(self._params.unflatten(params), hparams, batch, buffers)

    @override
    def run_before(self, batch: PyTree, y: Tensor, theta: Any) -> Any:
        return self._rule.run_before(batch, y, theta)


def _joined(rule: GradientRule, layout: Layout) -> tuple[GradientRule, Layout]:
    """A rule and a layout with the parameters in one vector, and each slot in another.

    They are so in the flat state already: nothing moves.
    """
    state = _without_values(layout)
    params = tree.layout_of(state.params)
    one = torch.empty(params.size, dtype=params.dtype, device="meta")
    whole = state._replace(params=one, slots=dict.fromkeys(state.slots, one))
    return _Joined(rule, params), layout._replace(state=tree.layout_of(whole))


def _without_values(layout: Layout) -> Any:
    """A state with shapes and dtypes alone."""
    return layout.state.unflatten(
        torch.empty(layout.state.size, dtype=layout.state.dtype, device="meta")
    )


class _Step(NamedTuple):
    """Where a step is made."""

    k: Tensor
    lr: Tensor
    y: Tensor
    theta: Theta
    data: Data


class _Gradient(NamedTuple):
    """A gradient of the loss w.r.t. flat parameters, with its derivatives."""

    value: Tensor
    products: list[Callable[[Tensor], Cotangents]]
    """Of minus the gradient, piece by piece."""
    buffers: PyTree
    """The buffers after it, or before it where no derivative depends on them."""


@dataclass(frozen=True, eq=False)
class _PieceField(FlatField):
    """Minus the gradient of one piece's share in the loss, on flat parameters."""

    rule: GradientRule
    layout: Layout
    params: Ravel
    buffers: PyTree
    index: int

    @override
    def velocity(self, t: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        return torch.neg(autodiff.gradient(lambda u: self._share(t, u, theta, data), y))

    @property
    @override
    def potential(self) -> Potential:
        return self._share

    def _share(self, t: Tensor, u: Tensor, theta: Theta, data: Data) -> Tensor:
        del t
        _, hparams = self.layout.shared.merge(theta.shared, data.shared)
        batch = self.layout.batch.merge(theta.batch, data.batch)
        piece = self.rule.pieces(batch)[self.index]
        return self.rule.value(self.params.unflatten(u), hparams, piece, self.buffers)[0]


def bind(inner: InnerOptimizer, layout: Layout) -> BoundField | BoundRule:
    """An inner optimiser on flat vectors."""
    return inner.bind(_Binder(layout))


class _Binder:
    """Binds each kind of inner optimiser to a layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def field(self, inner: Field) -> BoundField | BoundRule:
        return BoundField(inner, self._layout)

    def rule(self, inner: UpdateRule) -> BoundField | BoundRule:
        return BoundRule(inner, self._layout)

    def gradient_rule(self, inner: GradientRule) -> BoundField | BoundRule:
        return BoundGradientRule(inner, self._layout)
