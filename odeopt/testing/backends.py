"""The conformance suite of compile backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeopt.engine.compile import Backend, Compiled, record
from odeopt.testing.problems import relative_error


def check_backend(backend: Backend, device: torch.device | None = None) -> None:
    """Check a compile backend; raises AssertionError if it is wrong.

    What it makes of graphs gives what the graphs give, in single and double precision, for the
    inputs that they were recorded with and for others of the same shapes; it leaves its inputs as
    they are; results of one call are not those of the next; and it sees what becomes of a tensor
    that a loss captures. Takes seconds with a backend that generates code.

    Args:
        backend: an instance.
        device: where to compute.
    """
    for dtype in (torch.float32, torch.float64):
        make = _Made(backend, torch.device("cpu") if device is None else device, dtype)
        _check_numbers(make)
        _check_what_is_captured(make)


class _Made:
    """What a backend makes of functions."""

    def __init__(self, backend: Backend, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._backend = backend

    def __call__(self, function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> Compiled:
        return self._backend.compile(record(function, inputs), inputs)

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found = torch.randn(shape, generator=generator, dtype=torch.float64)
        return found.to(self.device, self.dtype)


def _layers(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> list[Tensor]:
    """Products, with and without tasks and factors, element by element, sums and views."""
    hidden = torch.tanh(torch.baddbmm(bias[:, None], x, weight, beta=0.5, alpha=2.0))
    narrow = torch.addmm(x[0, :2, :4], hidden[0, :, :2].mT, x[0], beta=-1.0, alpha=0.25)
    loss = (hidden @ weight.mT - x).square().mean((-2, -1))
    return [hidden, narrow, loss, loss.sum() * scale, scale.exp(), x.mT.reshape(3, -1), bias]


def _check_numbers(make: _Made) -> None:
    def inputs(seed: int) -> list[Tensor]:
        shapes = ((3, 8, 4), (3, 4, 16), (3, 16), ())
        return [make.draw(*shape, seed=seed + place) for place, shape in enumerate(shapes)]

    run = make(_layers, inputs(0))
    first, again = inputs(0), inputs(0)
    found = list(run(*first))
    _check_same(found, _layers(*again), make.dtype, "for the inputs that it was recorded with")
    changed = [k for k, (x, y) in enumerate(zip(first, again, strict=True)) if not x.equal(y)]
    assert not changed, f"the inputs {changed} have been changed"
    kept = [x.clone() for x in found]
    _check_same(list(run(*inputs(9))), _layers(*inputs(9)), make.dtype, "for other inputs")
    lost = [k for k, (x, y) in enumerate(zip(found, kept, strict=True)) if not x.equal(y)]
    assert not lost, f"the results {lost} of a call have been changed by the next call"


def _check_what_is_captured(make: _Made) -> None:
    matrix, number = make.draw(4, 4), torch.tensor(3.0, dtype=make.dtype, device=make.device)

    def function(x: Tensor) -> list[Tensor]:
        return [(matrix @ x * number).sin() + x @ matrix, number * 2]

    x = make.draw(4, seed=1)
    run = make(function, [x])
    _check_same(list(run(x)), function(x), make.dtype, "with captured tensors")
    matrix.mul_(2)
    number.add_(1)
    when = "once captured tensors have been changed in place"
    _check_same(list(run(x)), function(x), make.dtype, when)


def _check_same(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype, when: str) -> None:
    assert len(found) == len(expected), f"{len(found)} results, expected {len(expected)}"
    for place, (got, want) in enumerate(zip(found, expected, strict=True)):
        given, wanted = ((x.shape, x.dtype, x.device) for x in (got, want))
        assert given == wanted, f"result {place} {when} has {given}; expected {wanted}"
        error = relative_error(got, want)
        limit = 100 * torch.finfo(dtype).eps
        assert error <= limit, f"result {place} {when} is off by {error:.1e} (at most {limit:.0e})"
