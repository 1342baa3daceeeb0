"""A training loop of the user's own, with a module and a `torch.optim` optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from odeopt.adjoint.base import Adjoint
from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.adjoint.linearize import ReverseMode
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.checkpoint.graphs import Graphs
from odeopt.engine.flat import BoundRule, Layout
from odeopt.engine.safety import Safety
from odeopt.engine.watch import (
    evaluation,
    loss_code,
    recording,
    refuse_autocast,
    unchanged,
)
from odeopt.errors import CapturedTensorError, InputError, NondeterminismError
from odeopt.gradient.result import Result
from odeopt.grid import TimeGrid
from odeopt.inner.clipping import GradientTransform
from odeopt.inner.module import from_module
from odeopt.optimizer import ODEOptimizer
from odeopt.outer.loop.guard import Guard, UnusedParameters, check_hooks, copy_of, moved_groups
from odeopt.outer.loop.records import (
    Call,
    Inputs,
    RecordedRule,
    Records,
    StepLoss,
    check_loss,
    run_call,
)
from odeopt.outer.loop.result import LoopGrads, LoopResult
from odeopt.outer.loop.shared import looked_at, shared_compiler
from odeopt.outer.loop.tape import LoopTape, RunStep, sums_of
from odeopt.outer.loop.torch_optim import (
    check_settings,
    read_memory,
    settings,
    translate,
    write_memory,
)
from odeopt.solver.base import RecordedStep, reached
from odeopt.solver.dynamics import Data, Theta
from odeopt.tools import tree
from odeopt.tools.autodiff import can_record
from odeopt.tools.eagerly import eagerly
from odeopt.tools.seeds import mix, random_state, same_random_state, seeded
from odeopt.tools.shown import Shown, counted, shown
from odeopt.tools.transforms import versions
from odeopt.tools.types import PyTree


@final
class RecordedLoop(Shown):
    r"""A training loop that stays yours, and can be differentiated afterwards.

    `step` makes one update of the optimiser at once, and keeps its graph while memory allows.
    `backward` pulls the gradient of an outer loss through the N steps:
    $\lambda_k = (\partial u_{k+1} / \partial u_k)^\top \lambda_{k+1}$, exactly. It costs N
    Hessian-vector products beside the N gradients of the loop. Steps whose graphs are not kept are
    made again, from the states that `checkpoints` says: N more gradients, and memory for these
    states and the graph of one step.

    The module and the optimiser are not changed (but see `write_back`). Dropout draws other
    numbers in each step, batch normalisation updates its statistics. The steps see the module in
    the modes (train, eval) it was in at first, the outer loss sees it in evaluation mode.

    Examples:
        >>> import torch, odeopt
        >>> model = torch.nn.Linear(3, 1)
        >>> mse = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> with odeopt.RecordedLoop(model, torch.optim.Adam(model.parameters(), 0.1)) as inner:
        ...     for _ in range(10):
        ...         loss = inner.step(mse, data)
        >>> value = inner.backward(mse, data).value
        >>> model.weight.grad.shape
        torch.Size([1, 3])

    Args:
        model: a module; its present parameters are the initialisation.
        optimizer: one of `torch.optim` over some of its parameters, or of a class of your own (see
            `register_optimizer`). Of torch's all but LBFGS, SparseAdam, Muon and Adafactor will do.
            Its learning rates may change between steps; what it remembers is taken over.
            Options that are tensors which require grad are learned. As a difference to torch, a
            parameter that a loss does not depend on has a gradient of zero, not None, so that
            weight decay and momentum move it; a warning says so.
        hparams: None, or a pytree that losses get as a third argument, `loss(model, batch,
            hparams)`. It must be the same throughout.
        checkpoints: what is kept; by default `Graphs()`, the graph of each step as it is run.
        adjoint: how it differentiates; `DiscreteAdjoint()`, the exact gradient, by default.
        gradient_transform: what is done to gradients first, e.g. `clip_by_norm(1.0)`.
        seed: of the random numbers in losses; by default drawn from torch's generator.
        compile: None or a compile backend (see `ODEOptimizer`), for the steps as `backward` makes
            them. It needs one loss for all steps, given to each as the same function, batches of
            one structure, and no random numbers. What is compiled is kept for later loops with the
            same module.

    Raises:
        CompatibilityError: if the optimiser or one of its options is not supported, if a hook
            stands where the loop would not call it, or if TorchScript runs a part of the module.
        InputError: if the optimiser moves tensors that are no parameters of the module.

    References:
        The interface follows `higher.innerloop_ctx` (Grefenstette et al. 2019, arXiv 1910.01727).
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, hparams: PyTree = None, *,
        checkpoints: CheckpointSchedule | None = None, adjoint: Adjoint | None = None,
        gradient_transform: GradientTransform | None = None, seed: int | None = None,
        compile: str | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):  # pyright: ignore
            raise InputError(
                f"model is {shown(model)}; expected a torch.nn.Module. An inner loop over other"
                " parameters is solved by ODEOptimizer(SGD(loss)), with params and a loss of them."
            )
        self._module, self._optimizer, self._hparams = model, optimizer, hparams
        self._settings = settings(optimizer)
        check_hooks(list(model.modules()), optimizer)
        names = moved_groups(model, optimizer)
        moved = {name for own in names for name in own}
        self._own = dict(model.named_parameters())
        self._problem = from_module(model, run_call, moved.__contains__)
        rule, self._options, self._groups = translate(optimizer, names, self._problem.params)
        parameters = {name: self._own[name] for name in self._problem.params}
        self._memory = read_memory(optimizer, rule.slot_names, parameters)
        self._records = Records()
        self._make_rule = partial(
            RecordedRule, rule, self._groups, self._memory, self._problem, self._records,
            gradient_transform,
        )  # fmt: skip
        self._rule = self._make_rule()
        self._engine = partial(ODEOptimizer, adjoint=adjoint, checkpoints=checkpoints)
        self._compiler = None if compile is None else shared_compiler(model, compile)
        self._trusting = self._engine(self._rule, safety=Safety(probe=False))
        self._seed = int(torch.randint(2**31, ())) if seed is None else seed
        chosen = adjoint or DiscreteAdjoint()
        self._watched, unused = looked_at(model, chosen.differentiation)
        tree.ravel(self._problem.params, "the parameters")  # checks them by name
        state, _ = self._rule.init(self._problem.params, None)
        self._flat, self._layout = tree.ravel(state, "the parameters")
        places = torch.arange(len(self._flat), dtype=torch.float64)
        self._loss_at = int(self._layout.unflatten(places).buffers["loss"])
        kept = Graphs() if checkpoints is None else checkpoints
        if chosen.pulls_graphs and kept.keeps_graphs and compile is None:
            self._records.tape = LoopTape(kept, self._flat)
        self._rates: list[Tensor] = []
        self._unused = UnusedParameters(unused)
        self._rule_for: tuple[int, BoundRule] | None = None
        self._guard = Guard(model)
        self._open = True

    def __enter__(self) -> RecordedLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False

    @override
    def _shown(self) -> Iterator[str]:
        yield f"{type(self._module).__name__}, {type(self._optimizer).__name__}"
        yield counted(self.steps, "step")
        tape = self._records.tape
        if tape is not None:
            yield f"{counted(len(tape), 'graph')} kept"
        yield from (shown(own) for own in self._engine.keywords.values() if own is not None)

    @property
    def steps(self) -> int:
        """The number of steps made so far."""
        return len(self._records.steps)

    @property
    def model(self) -> nn.Module:
        """A copy of the module with the parameters and statistics of the moment; no graph."""
        copy = copy_of(self._module)
        self._load(copy)
        return copy

    @eagerly
    def step(self, loss: StepLoss, batch: PyTree = None) -> Tensor:
        """Make one update, at once, and record it.

        Args:
            loss: `loss(model, batch)`, or with hparams as a third argument; a scalar tensor. It
                may be another function in each step.
            batch: what the loss needs; it is kept by reference until the loop is dropped, and must
                not be changed. Leaf tensors in it that require grad get gradients.

        Returns:
            The loss before the update; it carries no gradient.

        Raises:
            OdeoptError: see `odeopt.errors`; each message says what to do.
        """
        self._check_step(loss)
        rates = _current_rates(self._optimizer)
        self._records.append(loss, batch)
        try:
            flat, value = self._next(rates, loss)
        except BaseException:
            self._records.steps.pop()
            raise
        self._flat = flat
        self._rates.append(rates)
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        return value

    @eagerly
    def value_and_grad(
        self, outer_loss: StepLoss, outer_batch: PyTree = None, *, many: bool = False,
        chunk_size: int | None = None,
    ) -> LoopResult:  # fmt: skip
        """The outer loss of the module after the loop, and its gradients.

        Args:
            outer_loss: `outer_loss(model, outer_batch)`, or with hparams as a third argument; the
                module is in evaluation mode.
            outer_batch: what it needs, e.g. validation data.
            many: whether outer_loss returns many losses, shape [losses], e.g. one for each
                validation example. The value and all gradients then have a first dimension of
                losses, which share one backward sweep.
            chunk_size: how many of them are pulled at once; by default as many as fit into memory.

        Raises:
            NondeterminismError: if the recorded steps do not lead to the same parameters again.
            OdeoptError: see `odeopt.errors`; each message says what to do.
        """
        check_loss(outer_loss)
        self._guard.check_parameters()
        if self._records.tape is not None:
            batches = [batch for _, batch in self._records.steps]
            self._records.tape.check_unchanged(batches, self._hparams)
        if any(leaf.requires_grad for leaf in tree.tensors(outer_batch)):
            raise CapturedTensorError(
                "outer_batch holds a tensor that requires grad: its gradient would be lost. Pass"
                " it to RecordedLoop as hparams, or detach it."
            )

        def outer(params: PyTree, batch: PyTree, inputs: Inputs, buffers: PyTree) -> Any:
            call = Call(outer_loss, batch, inputs.hparams, "outer_loss")
            return self._rule.outer(params, call, inputs, buffers), params

        grid = TimeGrid.from_lr(1.0, self.steps)  # the rates themselves are among the inputs
        opt, rule = self._chosen_engine()
        self._records.found = 0
        call = opt.value_and_grad(outer, has_aux=True, many=many, chunk_size=chunk_size)
        inputs = self._inputs(self._lrs())
        res = call(self._problem.params, rule.stream(self._seed), grid, outer_batch, inputs)
        self._check_replay(res)
        others: Inputs = res.grads.hparams
        params = {**res.grads.params, **(others.frozen or {})}
        grads = LoopGrads(
            {name: params[name] for name in self._own}, others.hparams, others.rates.cpu(),
            tuple(others.in_batches), tuple(others.options),
        )  # fmt: skip
        evaluations = res.stats.gradient_evaluations - self._records.found
        return LoopResult(res.value, grads, replace(res.stats, gradient_evaluations=evaluations))

    def backward(self, outer_loss: StepLoss, outer_batch: PyTree = None) -> LoopResult:
        """As `value_and_grad`, and add the gradients to `.grad`, as `Tensor.backward` does.

        Of the module's parameters, hparams, tensors in batches, learning rates and options of
        the optimiser: whatever requires grad. What these were computed from gets its share.
        """
        res = self.value_and_grad(outer_loss, outer_batch)
        grads = res.grads
        inputs = (
            [self._own[name] for name in grads.params], self._hparams, self._records.in_batches,
            self._options, self._lrs(),
        )  # fmt: skip
        gradients = (list(grads.params.values()), grads.hparams, grads.batch, grads.options)
        pairs = zip(tree.leaves(inputs), tree.leaves((*gradients, grads.lr)), strict=True)
        wanted = [(leaf, g) for leaf, g in pairs if isinstance(g, Tensor) and leaf.requires_grad]
        if wanted:
            tensors, gradients = zip(*wanted, strict=True)
            torch.autograd.backward(tensors, gradients)
        return res

    def write_back(self) -> None:
        """Put the final parameters and statistics into the module, momenta into the optimiser.

        A later loop then goes on where this one has ended.
        """
        self._load(self._module)
        moved = {name: self._own[name] for name in self._problem.params}
        state = self._layout.unflatten(self._flat)
        slots = {name: self._groups.split(own) for name, own in state.slots.items()}
        write_memory(self._optimizer, moved, slots, self._memory.steps + self.steps)
        self._guard = Guard(self._module)

    def _chosen_engine(self) -> tuple[ODEOptimizer, RecordedRule]:
        """What makes the steps again, compiled if that is wanted and possible, and its rule."""
        if self._compiler is not None and self.steps:
            reason = self._records.why_not_alike()
            if reason is None:
                rule = self._make_rule(self._records.steps[0][0])
                return self._engine(rule, compile=self._compiler), rule
            self._compiler.decline(reason)
        tape = self._records.tape
        known = tape is not None and len(tape) == self.steps  # every loss has been looked at
        return (self._trusting if known else self._engine(self._rule)), self._rule

    def _next(self, rates: Tensor, loss: StepLoss) -> tuple[Tensor, Tensor]:
        """The next flat state and the loss before it, exactly as the engine computes them."""
        refuse_autocast(self._flat.device)
        tape = self._records.tape
        inputs = tree.map_tensors(Tensor.detach, self._inputs(rates.expand(self.steps, -1)))
        if tape is None or not tape.has_room or not can_record([self._flat]):
            return self._next_alone(inputs)
        if self._watched.is_new(loss):
            self._next_alone(inputs)
        return self._next_recorded(inputs, tape)

    def _next_recorded(self, inputs: Inputs, tape: LoopTape) -> tuple[Tensor, Tensor]:
        """The same with the graph of the step, which the tape keeps."""
        k, start = self.steps - 1, self._flat
        loss, batch = self._records.steps[k]
        rule, theta, own = self._bound(inputs, torch.tensor(k))
        diff, data = theta.shared, own.shared
        used = (start, *diff, *data, *tree.tensors(batch))
        index, one = start.new_tensor(float(k)), start.new_ones(())

        def make() -> RecordedStep:
            with (
                seeded(mix(self._seed, k), start.device), evaluation(), unchanged(used),
                recording(_CAPTURED),
            ):  # fmt: skip
                return rule.record(_REVERSE, index, one, start, theta, own)

        kind = loss_code(loss), tuple(leaf.shape for leaf in tree.tensors(batch))
        step = tape.make(make, kind, used)
        self._check_unused(k, start, step.end, inputs)
        run = RunStep(start, step, sums_of(batch), versions(tree.tensors(self._hparams)))
        tape.keep(k, run)
        return step.end, step.end[self._loss_at]

    def _bound(self, inputs: Inputs, k: Tensor) -> tuple[BoundRule, Theta, Data]:
        """The rule on flat states with its inputs, whose layout changes with tensors in batches."""
        count = len(inputs.in_batches)
        if self._rule_for is None or self._rule_for[0] != count:
            layout = Layout(self._layout, tree.partition(((), inputs))[0], tree.partition(k)[0])
            self._rule_for = count, BoundRule(self._rule, layout)
        rule = self._rule_for[1]
        diff, data = rule.layout.shared.split(((), inputs))
        return rule, Theta(diff, ()), Data(data, (k,))

    def _next_alone(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The same without a graph; a new loss is looked at closely."""
        k, like = self.steps - 1, self._flat
        state = self._layout.unflatten(like)
        index, one = like.new_tensor(float(k)), like.new_ones(())
        loss, batch = self._records.steps[k]
        with (
            torch.enable_grad(),
            seeded(mix(self._seed, k), like.device),
            evaluation(),
            unchanged((like, *tree.tensors((inputs, batch)))),
            self._watched.evaluation(loss) as captures,
        ):
            before = random_state()
            after = self._rule.update(index, one, state, (), inputs, torch.tensor(k))
            self._records.drew |= not same_random_state(before, random_state())
        if captures or any(leaf.requires_grad for leaf in tree.tensors(after)):
            raise CapturedTensorError(_CAPTURED)
        end = self._layout.flatten(after, "the updated state")
        self._check_unused(k, like, end, inputs)
        return end, after.buffers["loss"]

    def _check_unused(self, k: int, start: Tensor, end: Tensor, inputs: Inputs) -> None:
        """Warn if the step has moved parameters that its loss does not depend on."""

        def params_of(flat: Tensor) -> Any:
            return self._rule.readout(self._layout.unflatten(flat))

        def evaluate(params: Mapping[str, Tensor]) -> Tensor:
            with torch.enable_grad(), seeded(mix(self._seed, k), self._flat.device), evaluation():
                buffers = self._layout.unflatten(start).buffers
                return self._rule.loss_at(params, torch.tensor(k), inputs, buffers)[0]

        loss, _ = self._records.steps[k]
        self._unused.check(loss, evaluate, partial(params_of, start), partial(params_of, end))

    def _inputs(self, rates: Tensor) -> Inputs:
        frozen = self._problem.hparams
        rates = rates.to(self._flat.device)
        return Inputs(rates, self._options, frozen, self._hparams, self._records.in_batches)

    def _lrs(self) -> Tensor:
        if not self._rates:
            return torch.zeros(0, len(self._optimizer.param_groups), dtype=torch.float64)
        with torch.enable_grad():
            return torch.stack(self._rates)

    def _load(self, module: nn.Module) -> None:
        state = self._layout.unflatten(self._flat)
        values = {**self._rule.readout(state), **state.buffers["statistics"]}
        with torch.no_grad():
            for name, own in (*module.named_parameters(), *module.named_buffers()):
                if name in values:
                    own.copy_(values[name])

    def _check_step(self, loss: object) -> None:
        check_loss(loss)
        if not self._open:
            raise InputError("the loop has been left: make its steps inside the with block.")
        children = list(self._module.modules())
        self._guard.check(children)
        check_hooks(children, self._optimizer)
        check_settings(self._optimizer, self._settings)

    def _check_replay(self, res: Result) -> None:
        now = self._rule.readout(self._layout.unflatten(self._flat))
        again, end, start = map(tree.flat, (res.aux, now, self._problem.params))
        allowed = 1.0 if self._compiler is None else torch.finfo(end.dtype).eps ** -0.25
        if not bool(reached(again).gap(start, end) <= allowed):
            raise NondeterminismError(
                "the recorded steps, run again, lead to other parameters than they did at first: a"
                " batch or hparams were changed in place, or a loss depends on something else"
                " that has changed. Pass copies, or everything that changes as an argument."
            )


def _current_rates(optimizer: Optimizer) -> Tensor:
    """The rates of the groups now, shape [groups]; a later change in place does not touch them."""
    with torch.enable_grad():
        rates = [  # a number is not to be rounded to torch's default
            torch.as_tensor(group["lr"], dtype=torch.float64, device="cpu").reshape(())
            for group in optimizer.param_groups
        ]
        return torch.stack(rates)


_CAPTURED = (
    "the loss uses a tensor that requires grad and is not one of its arguments: its gradient would"
    " be lost. Take the module's parameters from the model that the loss is given. Pass other"
    " tensors to RecordedLoop as hparams (or as leaves in the batch), and take them from the loss's"
    " arguments; or detach them."
)
_REVERSE = ReverseMode().linearize
"""What a rule is recorded with."""
