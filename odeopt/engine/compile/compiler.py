"""Kernels traced once per signature, kept, and checked against eager execution."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.engine.compile.backend import Backend, Compiled, Trace, record
from odeopt.engine.stats import Stats
from odeopt.errors import CompilationError, OdeoptWarning
from odeopt.registry import BACKENDS
from odeopt.solver.dynamics import Data, Theta
from odeopt.tools import tree
from odeopt.tools.shown import Shown

Kernel = Callable[..., Any]

RETRACES = 8
"""Traces of one kernel after which a warning asks what changes from call to call."""


_TRACING = threading.RLock()
"""Tracing and compiling change the state of the process: threads take turns."""


class Traced(NamedTuple):
    """A compiled kernel, and how to put its outputs together; `run` is None if there is none."""

    name: str
    key: object
    run: Compiled | None
    assemble: Callable[[Iterator[Tensor]], Any]
    text: object = None
    """The graph as it was recorded, to be compared with that of a later one."""


class Compiler(Shown):
    """The compiled kernels of one optimiser.

    A kernel is traced once per name, structure, shapes, dtypes and devices of its inputs, and
    Python numbers among them and in what the loss captures; then it is compared with eager
    execution on distinct random tensors near its inputs, or smaller ones if those are huge. Later
    calls reuse it.

    Args:
        backend: a name in `odeopt.BACKENDS`.

    Raises:
        UnknownNameError: if there is no backend of that name.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._backend = BACKENDS.get(backend)()
        self._known: list[Traced] = []
        self._witnesses: list[Traced] = []
        self._warned = False

    def settings(self) -> Mapping[str, Any]:
        """What tells two compilers apart: not the kernels that they have made so far."""
        return {"backend": self.backend}

    def find(
        self, name: str, key: object, kernel: Kernel, args: tuple[Any, ...], stats: Stats
    ) -> Traced:
        """The compiled kernel for these arguments."""
        with _TRACING:
            for known in self._known:
                if known.name == name and _equal(known.key, key):
                    stats.compile_hits += 1
                    return known
            begin = time.perf_counter()
            traced, problem = self._trace(name, key, kernel, args, self._backend)
            stats.compile_seconds += time.perf_counter() - begin
            stats.compile_misses += 1
            _remember(self._known, traced)
        self._warn(name, problem)
        return traced

    def check_unchanged(
        self, key: object, kernel: Kernel, args: tuple[Any, ...], expected: Tensor
    ) -> bool:
        """Compare a kernel's eager result with that of a graph recorded when it was first seen.

        Returns whether it had been seen before and could be recorded.

        Raises:
            CompilationError: they differ, so that other compiled kernels are out of date as well.
        """
        inputs = tree.pytree.tree_leaves(args)
        key = (key, _signature(inputs))
        with _TRACING:
            witness = next((known for known in self._witnesses if _equal(known.key, key)), None)
            if witness is None:
                witness, _ = self._trace("velocity", key, kernel, args, Trace())
                _remember(self._witnesses, witness)
                return False
        if witness.run is None:
            return False
        gap = _disagreement([expected], witness.run(*inputs))
        if gap > 0:
            raise CompilationError(_STALE.format(gap=gap))
        return True

    def _trace(
        self, name: str, key: object, kernel: Kernel, args: tuple[Any, ...], backend: Backend
    ) -> tuple[Traced, str]:
        """As `_make`, without the warnings that torch's compilers give of their own parts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._make(name, key, kernel, args, backend)

    def _make(
        self, name: str, key: object, kernel: Kernel, args: tuple[Any, ...], backend: Backend
    ) -> tuple[Traced, str]:
        """The compiled kernel, and why there is none."""
        inputs, spec = tree.pytree.tree_flatten(args)
        inputs = [_distinct(leaf, seed) for seed, leaf in enumerate(inputs)]
        out_spec: list[Any] = []

        def flat(*leaves: Tensor) -> list[Tensor]:
            result = kernel(*tree.pytree.tree_unflatten(list(leaves), spec))
            outputs, own = tree.pytree.tree_flatten(result)
            out_spec[:] = [own]
            return outputs

        try:
            graph = record(flat, inputs)
        except Exception as error:  # whatever the model does that cannot be traced
            return Traced(name, key, None, iter), f"cannot be traced: {_first_line(error)}"
        operation = _shaped_by_numbers(graph)
        if operation is not None:
            return Traced(name, key, None, iter), _SHAPED.format(operation=operation)
        text, assemble = _text(graph), tree.assembler(out_spec[0])
        for known in (*self._known, *self._witnesses):
            if known.name == name and known.run is not None and known.text == text:
                return Traced(name, key, known.run, assemble, text), ""
        try:
            run = backend.compile(graph, inputs)
        except CompilationError:
            raise
        except Exception as error:  # whatever the backend does not support
            reason = f"cannot be compiled with {self.backend!r}: {_first_line(error)}"
            return Traced(name, key, None, iter), reason
        _check(name, flat, run, inputs)
        return Traced(name, key, run, assemble, text), ""

    def decline(self, reason: str) -> None:
        """Say once why kernels run eagerly."""
        if not self._warned:
            self._warned = True
            message = f"it runs without compilation, since {reason}"
            warnings.warn(message, OdeoptWarning, stacklevel=2)

    def _warn(self, name: str, problem: str) -> None:
        if problem:
            self.decline(f"the {name} kernel {problem}")
        if sum(known.name == name for known in self._known) == RETRACES:
            warnings.warn(
                f"the {name} kernel has been traced {RETRACES} times, since shapes, structures or"
                " Python numbers in hparams, in the batch or captured by the loss change from call"
                " to call: pass numbers as tensors and keep shapes fixed.",
                OdeoptWarning,
                stacklevel=2,
            )


def _remember(known: list[Traced], traced: Traced) -> None:
    """Add a kernel, in place of one that was the same graph for other captured numbers."""
    known[:] = [
        own for own in known if (own.name, own.text) != (traced.name, traced.text) or not own.run
    ]
    known.append(traced)


def _text(graph: torch.fx.GraphModule) -> object:
    """A graph with its shapes, the numbers in it and the tensors that it holds."""
    held = tuple(id(value) for _, value in sorted(vars(graph).items()) if isinstance(value, Tensor))
    buffers = tuple(id(value) for _, value in sorted(graph.named_buffers()))
    shapes = [str(node.meta.get("tensor_meta")) for node in graph.graph.nodes]
    return graph.code, shapes, held, buffers


def _shaped_by_numbers(graph: torch.fx.GraphModule) -> str | None:
    """The first operation whose result has a shape that depends on numbers; None without one.

    A trace has the shapes of one evaluation in it: with other numbers it would fail, or divide a
    mean by another count.
    """

    def is_mask(node: torch.fx.Node) -> bool:
        dtype = getattr(node.meta.get("tensor_meta"), "dtype", None)
        return dtype in (torch.bool, torch.uint8)

    for node in graph.graph.nodes:
        tags: Any = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape not in tags:
            continue
        if node.target is not torch.ops.aten.index.Tensor or any(
            map(is_mask, node.all_input_nodes[1:])
        ):
            return str(node.target)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class CompiledKernel:
    """A kernel with some of its inputs bound, which finds its compiled form when first called.

    The tensors of later calls must have the shapes of the first ones; other data may differ.

    Args:
        compiler: where compiled kernels are kept.
        name: the kernel's name.
        layout: what else the trace depends on.
        kernel: `kernel(*tensors, theta, data)`.
        theta: the differentiable inputs beside the tensors.
        data: the other ones, for calls that bring none.
        stats: hits, misses and seconds are added to it.
    """

    def __init__(
        self, compiler: Compiler, name: str, layout: object, kernel: Kernel,
        theta: Theta, data: Data, stats: Stats,
    ) -> None:  # fmt: skip
        self._compiler, self._name, self._layout = compiler, name, layout
        self._kernel, self._theta, self._data, self._stats = kernel, theta, data, stats
        self._theta_leaves = _contiguous(theta)
        self._data_leaves = _contiguous(data)
        self._by_signature: dict[tuple[object, ...], Traced] = {}
        self._last: Traced | None = None

    def __call__(self, *tensors: Tensor, data: Data | None = None) -> Any:
        """The kernel's result."""
        bound, leaves = self._data, self._data_leaves
        traced = self._last
        if data is not None:
            bound, leaves = data, _contiguous(data)
            traced = self._by_signature.get(_signature(leaves))
        inputs = [x.contiguous() for x in tensors]
        inputs += self._theta_leaves
        inputs += leaves
        if traced is None:
            key, args = (self._layout, _signature(inputs)), (*tensors, self._theta, bound)
            traced = self._compiler.find(self._name, key, self._kernel, args, self._stats)
            self._last = self._by_signature[_signature(leaves)] = traced
        if traced.run is None:
            return self._kernel(*tensors, self._theta, bound)
        return traced.assemble(iter(traced.run(*inputs)))


def _contiguous(inputs: Theta | Data) -> list[Tensor]:
    return [leaf.contiguous() for part in inputs for leaf in part]


_SHAPED = (
    "has shapes that depend on the numbers in a tensor ({operation}), as with a boolean mask:"
    " multiply by the mask, or use torch.where"
)
_MISTRACED = (
    "the compiled {name} kernel gives other numbers than eager execution (relative difference"
    " {gap:.1e}): the model does something that tracing cannot see. Use compile=None for it, and"
    " please report it."
)
_STALE = (
    "the compiled kernels give other numbers than the loss does now (relative difference"
    " {gap:.1e}): the loss uses a number or tensor that is not one of its arguments and has"
    " changed since it was traced. Pass it in hparams or in the batch, or use compile=None."
)


def _check(name: str, kernel: Compiled, compiled: Compiled, inputs: Sequence[Tensor]) -> None:
    """Refuse a compiled kernel that gives other numbers.

    Steps that are far too long lead to huge states, which magnify rounding, or at which nothing is
    finite: there small ones decide.
    """
    expected = kernel(*inputs)
    gap = _disagreement(expected, compiled(*inputs))
    if gap > 0 or not all(bool(torch.isfinite(leaf).all()) for leaf in expected):
        small = [_tame(leaf) for leaf in inputs]
        gap = _disagreement(kernel(*small), compiled(*small))
    if gap > 0:
        raise CompilationError(_MISTRACED.format(name=name, gap=gap))


def _disagreement(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The relative difference of results that differ by more than rounding, or else 0.

    Both are allowed 100 eps of the largest result, since a small one (the gradient w.r.t. dt is an
    inner product) may be a difference of large terms; and 100 eps^(3/4) of their own size. It is
    the eps of the coarsest among the results, from which others are computed.
    """
    largest, worst = max((_largest(want) for want in expected), default=0.0), 0.0
    eps = max((torch.finfo(want.dtype).eps for want in expected), default=0.0)
    for want, got in zip(expected, actual, strict=True):
        gap = _gap(want, got, eps**0.25 * largest + eps)
        if gap > 100 * eps**0.75:
            worst = max(worst, gap)
    return worst


def _largest(leaf: Tensor) -> float:
    finite = torch.where(torch.isfinite(leaf), leaf, torch.zeros_like(leaf))
    return float(finite.abs().amax()) if leaf.numel() else 0.0


def _gap(want: Tensor, got: Tensor, floor: float) -> float:
    """The largest difference over the largest entry; infinite where only one is finite."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.numel() == 0:
        return 0.0
    finite = torch.isfinite(want)
    if not bool((finite == torch.isfinite(got)).all()):
        return float("inf")
    gap = torch.where(finite, got - want, torch.zeros_like(want))
    return _largest(gap) / max(_largest(want), floor)


def _distinct(leaf: Tensor, seed: int) -> Tensor:
    """A new tensor near a given one; floats are moved at random, zeros by a little."""
    leaf = leaf.contiguous().clone()
    if not leaf.is_floating_point():
        return leaf
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
    return leaf * (1 + 0.01 * noise) + 1e-3 * noise


def _tame(leaf: Tensor) -> Tensor:
    """The same, but shrunk to 1 where numbers are not finite or beyond eps^(-1/2) in size."""
    if not leaf.is_floating_point() or leaf.numel() == 0:
        return leaf
    finite = torch.nan_to_num(leaf)
    largest = finite.abs().amax()
    wild = largest > torch.finfo(leaf.dtype).eps ** -0.5
    return torch.where(wild, finite / largest, finite)


def _signature(leaves: Sequence[Tensor]) -> tuple[object, ...]:
    return tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)


def _equal(first: object, second: object) -> bool:
    try:
        return bool(first == second)
    except (ValueError, RuntimeError):  # e.g. arrays, which compare entry by entry
        return False
