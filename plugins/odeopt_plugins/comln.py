"""COMLN: the last layer by gradient flow, with forward sensitivities and a learned horizon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.outer.method import TaskBatch, TaskData, as_task_batch
from odeopt.solver import Solver
from odeopt.tools import tree
from odeopt.tools.shown import shown
from odeopt.tools.types import PyTree
from odeopt_plugins.common import (
    Settings,
    check_values,
    for_each_task,
    known_settings,
    mean_over,
    optimizer,
)

Features = Callable[[PyTree, PyTree], Tensor]
"""`features(params, batch) -> [M, F]`, the inputs of the last layer."""

OutputLoss = Callable[[Tensor, PyTree], Tensor]
"""`output_loss(outputs, batch)`: a scalar, from outputs of shape [M, N]."""


class GramFlow(odeopt.Field):
    r"""Gradient flow of a linear layer, in coordinates that do not know the feature dimension.

    With features $\Phi$ [M, F], initial outputs $Z_0 = \Phi W_0^\top$ and the Gram matrix
    $G = \Phi\Phi^\top$, the weights stay $W(t) = W_0 - s(t)^\top\Phi$, where
    $s' = \nabla_Z L(Z_0 - G s)$ and s has the shape [M, N]. With `sensitive`, the state also holds
    $S = \partial s / \partial (Z_0, G)$, shape [MN + MM, M, N], whose equation is the
    linearisation of that of s. The batch is (Z_0, G, training data).

    Args:
        output_loss: L as a function of the outputs.
        sensitive: whether sensitivities are carried along.
    """

    def __init__(self, output_loss: OutputLoss, sensitive: bool) -> None:
        self._output_loss, self._sensitive = output_loss, sensitive

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: Any
    ) -> PyTree:
        start, gram, data = batch
        s = state["s"]

        def slope(outputs: Tensor) -> Tensor:
            return torch.func.grad(lambda z: self._output_loss(z, data))(outputs)

        outputs = start - gram @ s
        if not self._sensitive:
            return {"s": slope(outputs)}
        turned = torch.einsum("ab,dbn->dan", gram, state["S"])  # matmul would copy gram
        moved = _directions(s) - turned
        push: Any = torch.func.vmap(lambda v: torch.func.jvp(slope, (outputs,), (v,))[1])
        return {"s": slope(outputs), "S": push(moved)}


def _directions(s: Tensor) -> Tensor:
    r"""$\partial(Z_0 - G s)$ for each entry of $Z_0$ and of G, s held fixed: [MN + MM, M, N]."""
    m, n = s.shape
    eye = torch.eye(m, dtype=s.dtype, device=s.device)
    outputs = torch.eye(m * n, dtype=s.dtype, device=s.device).reshape(m * n, m, n)
    gram = torch.einsum("am,bn->abmn", eye, s).reshape(m * m, m, n)
    return torch.cat([outputs, -gram])


class _Layer(NamedTuple):
    """The last layer on the training features of each task."""

    weights: Tensor
    """[N, F]."""
    features: Tensor
    """[tasks, M, F]."""
    start: Tensor
    """Outputs before adaptation, [tasks, M, N]."""
    gram: Tensor
    """[tasks, M, M]."""


class _Flow(NamedTuple):
    """The end of the flow of each task."""

    s: Tensor
    """[tasks, M, N]."""
    sensitivities: Tensor
    """[tasks, MN + MM, M, N]."""
    slope: Tensor
    """ds/dt at the horizon."""
    status: Tensor
    """[tasks]."""
    stats: odeopt.Stats


@final
@odeopt.METHODS.register("comln", example=lambda loss: _example())
class COMLN(odeopt.Method):
    r"""Gradient flow of the last layer up to a horizon T that is learned, like everything else.

    The gradients w.r.t. the features, the initial last layer and T are exact for the flow (to the
    solver's tolerance), without going backward in time: the sensitivities of the flow are carried
    along, in the Gram-matrix coordinates of `GramFlow`. `hparams` is `{"log_horizon": scalar}`, as
    `init_hparams` makes it. Memory per task: (MN + MM) M N numbers for M training points and N
    outputs, whatever the horizon and the number of features.

    Args:
        features: the inputs of the last layer as a function of all parameters (a dictionary).
        output_loss: the training loss as a function of the outputs.
        outer_loss: the validation loss, likewise; the training loss by default.
        weight: the name of the last layer's weights, shape [N, F] (or [F] for one output).
        bias: the name of its bias, shape [N]; None if there is none.
        initial_horizon: T to start with.
        solver: `Adaptive(rtol=1e-5, atol=1e-7)`, Dormand-Prince, by default.
        **settings: see `odeopt_plugins.common.Settings`; T is shared, so horizon does not apply.

    References:
        Deleu et al. 2022, "Continuous-Time Meta-Learning with Forward Mode Differentiation".
    """

    @known_settings
    def __init__(
        self,
        features: Features,
        output_loss: OutputLoss,
        outer_loss: OutputLoss | None = None,
        *,
        weight: str = "head.weight",
        bias: str | None = "head.bias",
        initial_horizon: float = 1.0,
        solver: Solver | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        if settings.get("horizon") is not None:
            raise odeopt.InputError("COMLN learns one horizon for all tasks; leave horizon out.")
        if not (math.isfinite(initial_horizon) and initial_horizon > 0):
            raise odeopt.InputError(
                f"initial_horizon is {shown(initial_horizon)}; expected a positive number."
            )
        self._features, self._outer = features, outer_loss or output_loss
        self._names, self._horizon = (weight, bias), initial_horizon
        self._on_failure: OnFailure = settings.get("on_failure", "raise")
        chosen = odeopt.Adaptive(rtol=1e-5, atol=1e-7) if solver is None else solver
        self._sensitive, self._plain = (
            optimizer(
                GramFlow(output_loss, sensitive), chosen, odeopt.FirstOrderAdjoint(), settings
            )
            for sensitive in (True, False)
        )

    @override
    def init_hparams(self, params: PyTree, hparams: PyTree = None) -> PyTree:
        if hparams is not None:
            raise odeopt.InputError("the losses of COMLN take no hparams; expected None.")
        like = tree.tensors(params)[0]
        return {"log_horizon": like.new_tensor(math.log(self._horizon))}

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> odeopt.MetaGradient:
        batch = as_task_batch(task_batch)
        params = tree.map_tensors(lambda leaf: leaf.detach().requires_grad_(), params)
        log_horizon = self._log_horizon(hparams).detach().requires_grad_()
        flow = self._flow(params, log_horizon.detach().exp(), batch.train)
        values = torch.full(flow.status.shape, torch.nan).to(flow.s)
        ok = (flow.status == odeopt.Status.OK).nonzero().flatten()
        with torch.enable_grad():
            good, data = tree.map_tensors(lambda leaf: leaf[ok], (flow, batch))
            kept = self._values(good, params, log_horizon, data)
        values[ok] = kept.detach()
        status = check_values(flow.status, values, self._on_failure)
        value = mean_over(status[ok], kept)
        leaves = tree.leaves(params)
        *of_leaves, of_horizon = torch.autograd.grad(
            value, [*leaves, log_horizon], allow_unused=True, materialize_grads=True
        )
        grads = odeopt.MetaGrads(
            tree.pytree.tree_unflatten(of_leaves, tree.structure(params)),
            {"log_horizon": of_horizon},
        )
        return odeopt.MetaGradient(value.detach(), grads, flow.stats, values, status)

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        weight, bias = self._names
        with torch.no_grad():
            layer = self._layer(params, train)
            grid = odeopt.TimeGrid.uniform(self._log_horizon(hparams).exp(), 1)
            state = {"s": torch.zeros_like(layer.start[0])}
            batch = (layer.start, layer.gram, train)
            s = self._plain.solve(state, batch, grid, tasks=True).params["s"]
            weights = layer.weights - s.mT @ layer.features
        shapes = {name: params[name].shape for name in self._names if name is not None}
        tasks = weights.shape[0]
        adapted = for_each_task(params, tasks)
        if bias is None:
            return {**adapted, weight: weights.reshape(tasks, *shapes[weight])}
        return {
            **adapted,
            weight: weights[..., :-1].reshape(tasks, *shapes[weight]),
            bias: weights[..., -1].reshape(tasks, *shapes[bias]),
        }

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        batch = as_task_batch(task_batch)
        adapted = self.adapt(params, batch.train, hparams)

        def one(params: PyTree, data: PyTree) -> Tensor:
            return self._outer(self._outputs(params, data), data)

        with torch.no_grad():
            return torch.func.vmap(one)(adapted, batch.validation)

    def _outputs(self, params: Any, data: PyTree) -> Tensor:
        weight, bias = self._names
        features = self._features(params, data)
        outputs = features @ params[weight].reshape(-1, features.shape[-1]).mT
        return outputs if bias is None else outputs + params[bias]

    def _layer(self, params: Any, train: PyTree) -> _Layer:
        features = self._inputs(params, train)
        weights = self._weights(params, features.shape[-1])
        return _Layer(weights, features, features @ weights.T, features @ features.mT)

    def _inputs(self, params: PyTree, batch: PyTree) -> Tensor:
        """The features of each task with a column of ones for the bias, [tasks, M, F]."""
        features: Tensor = torch.func.vmap(lambda data: self._features(params, data))(batch)
        if self._names[1] is None:
            return features
        return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)

    def _weights(self, params: Any, width: int) -> Tensor:
        weight, bias = self._names
        missing = [name for name in self._names if name is not None and name not in params]
        if missing:
            raise odeopt.InputError(
                f"the parameters have no {missing}, the last layer; they have {sorted(params)}."
            )
        own = width if bias is None else width - 1
        if params[weight].shape[-1] != own:
            raise odeopt.InputError(
                f"the last layer {weight!r} has the shape {tuple(params[weight].shape)}, but there"
                f" are {own} features."
            )
        rows = params[weight].reshape(-1, own)
        return rows if bias is None else torch.cat([rows, params[bias].reshape(-1, 1)], dim=1)

    def _flow(self, params: PyTree, horizon: Tensor, train: PyTree) -> _Flow:
        """The flow of each task with its sensitivities."""
        with torch.no_grad():
            layer = self._layer(params, train)
            _, m, n = layer.start.shape
            size = m * n + m * m
            state = {"s": layer.start.new_zeros(m, n), "S": layer.start.new_zeros(size, m, n)}
            batch, grid = (layer.start, layer.gram, train), odeopt.TimeGrid.uniform(horizon, 1)
            sol = self._sensitive.solve(state, batch, grid, tasks=True, on_failure=self._on_failure)
            field = self._plain.field
            assert isinstance(field, odeopt.Field), "given as a velocity"
            rate = torch.func.vmap(lambda s, data: field.velocity(horizon, s, (), None, data))
            slope = rate({"s": sol.params["s"]}, batch)["s"]
        assert sol.status is not None, "there is no transform around a method"
        return _Flow(sol.params["s"], sol.params["S"], slope, sol.status, sol.stats)

    def _values(self, flow: _Flow, params: PyTree, log_horizon: Tensor, batch: TaskBatch) -> Tensor:
        """The validation loss of each task, differentiable (to first order) in everything."""
        layer = self._layer(params, batch.train)
        inputs = torch.cat([layer.start.flatten(1), layer.gram.flatten(1)], dim=1)
        moved = inputs - inputs.detach()
        horizon = log_horizon.exp()
        s = flow.s + torch.einsum("kd,kdmn->kmn", moved, flow.sensitivities)
        s = s + flow.slope * (horizon - horizon.detach())
        features = self._inputs(params, batch.validation)
        outputs = features @ layer.weights.T - features @ layer.features.mT @ s
        return torch.func.vmap(self._outer)(outputs, batch.validation)

    def _log_horizon(self, hparams: PyTree) -> Tensor:
        if not isinstance(hparams, dict) or set(cast("dict[str, Any]", hparams)) != {"log_horizon"}:
            raise odeopt.InputError(
                "COMLN learns its horizon: pass hparams = method.init_hparams(params)."
            )
        return hparams["log_horizon"]


def _example() -> COMLN:
    """COMLN on the problem of the conformance suite."""

    def features(params: PyTree, batch: PyTree) -> Tensor:
        return torch.tanh(batch[0] @ params["hidden"].T + params["bias"])

    def loss(outputs: Tensor, batch: PyTree) -> Tensor:
        return 0.5 * (outputs[:, 0] - batch[1]).square().mean()

    return COMLN(features, loss, weight="out", bias="shift", initial_horizon=0.7)
