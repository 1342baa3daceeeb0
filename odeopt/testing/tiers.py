"""The conformance suite of tiers, where kept states are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.store import Device, Tier
from odeopt.checkpoint.uniform import Every
from odeopt.errors import OdeoptError
from odeopt.grid import TimeGrid
from odeopt.inner.flows import GradientFlow
from odeopt.optimizer import ODEOptimizer
from odeopt.testing.problems import smooth_problem
from odeopt.tools import tree
from odeopt.tools.describing import describe
from odeopt.tools.packing import digest_values


def check_tier(tier: Tier, device: torch.device | None = None) -> None:
    """Check a tier; raises AssertionError with what is wrong.

    States come back bit for bit, of any dtype and shape, with the order that they had in memory,
    in any sequence; a state that was taken stays as it is; what was dropped or closed is gone;
    closing twice does no harm; two shelves at once do not mix. A gradient with the tier is that
    of states kept on the device, and the tier can be described, so that a solve is recognised.

    A tier with a `journal` has one shelf at a time, and each of its indices has one state.

    Args:
        tier: an instance.
        device: where the states come from.
    """
    assert isinstance(tier, Tier), f"{tier!r} is not a Tier"  # pyright: ignore
    assert isinstance(tier.kind, str), f"kind is {tier.kind!r}; expected a text"  # pyright: ignore
    _check_states(tier, device)
    _check_sequence(tier, device)
    _check_drop(tier, device)
    for done in (False, True):
        _check_close(tier, done, device)
    if tier.journal is None:
        _check_replaced(tier, device)
        _check_two_at_once(tier, device)
    _check_gradient(tier, device)
    _check_description(tier)


def _states(device: torch.device | None) -> dict[str, Tensor]:
    """States of many kinds, by name."""
    numbers = torch.arange(24, dtype=torch.float64, device=device) / 7
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    special = torch.tensor([float("nan"), -0.0, float("inf"), 5e-324], dtype=torch.float64)
    return {
        **{str(dtype): numbers.to(dtype) for dtype in kinds},
        "NaN, -0, inf and 5e-324": special.to(device),
        "no entries": numbers[:0],
        "no dimensions": numbers[3],
        "shape [3, 8]": numbers.reshape(3, 8),
        "shape [8, 3], transposed": numbers.reshape(3, 8).T,
        "every second entry": numbers[::2],
        "one state for three tasks": numbers.expand(3, 24),
    }


def _same(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit, NaN equal to NaN."""
    return digest_values([found]) == digest_values([expected])


def _check_states(tier: Tier, device: torch.device | None) -> None:
    states, shelf = _states(device), tier.open()
    for index, state in enumerate(states.values()):
        shelf.put(index, state)
    for index, (name, state) in enumerate(states.items()):
        back = shelf.get(index)
        assert back.dtype == state.dtype, (
            f"a state ({name}) of {state.dtype} comes back as {back.dtype}"
        )
        assert back.shape == state.shape, (
            f"a state ({name}) of shape {tuple(state.shape)} comes back as {tuple(back.shape)}"
        )
        assert back.device == state.device, (
            f"a state ({name}) on {state.device} comes back on {back.device}"
        )
        assert _same(back, state), f"a state ({name}) does not come back bit for bit"
        has_gaps = name == "every second entry"
        assert has_gaps or state.numel() <= 1 or back.stride() == state.stride(), (
            f"a state ({name}) with the strides {state.stride()} comes back with"
            f" {back.stride()}, but kernels add numbers up as they lie in memory: use"
            " odeopt.checkpoint.store.pack"
        )
    shelf.close(done=True)


class _NumberShelf:
    """A new shelf of a tier, with vectors of n + 1/2 for states."""

    def __init__(self, tier: Tier, device: torch.device | None) -> None:
        self.shelf, self._device = tier.open(), device

    def state(self, n: int) -> Tensor:
        return torch.full((5,), n + 0.5, dtype=torch.float64, device=self._device)

    def put(self, index: int, n: int) -> None:
        self.shelf.put(index, self.state(n))

    def take(self, index: int, n: int, message: str) -> Tensor:
        """The state at an index, which has to be the n-th."""
        state = self.shelf.get(index)
        assert _same(state, self.state(n)), message
        return state


def _check_sequence(tier: Tier, device: torch.device | None) -> None:
    own = _NumberShelf(tier, device)
    indices = (7, 0, 3, 100_000, 1)
    for index in indices:
        own.put(index, index)
    for index in (*reversed(indices), *indices):
        own.shelf.prefetch(index)
        own.take(index, index, f"state {index} is not the one that was put there")
    own.shelf.close(done=True)


def _check_replaced(tier: Tier, device: torch.device | None) -> None:
    own = _NumberShelf(tier, device)
    message = "a state put in place of another is not the one that comes back"
    own.put(2, 2)
    own.shelf.prefetch(2)
    first = own.shelf.get(2)
    own.shelf.prefetch(2)
    own.put(2, 8)
    second = own.take(2, 8, message)
    assert _same(first, own.state(2)), "a state that was taken changes with a later put"
    own.shelf.close(done=True)
    assert _same(second, own.state(8)), "a state that was taken changes with close"


def _check_drop(tier: Tier, device: torch.device | None) -> None:
    own = _NumberShelf(tier, device)
    own.put(0, 0)
    own.put(1, 1)
    first = own.shelf.get(0)
    own.shelf.drop(0)
    assert _raises(lambda: own.shelf.get(0)), "a state that was dropped can still be taken"
    own.take(1, 1, "drop changes another state")
    assert _same(first, own.state(0)), "a state that was taken changes with drop"
    own.put(0, 0)
    own.take(0, 0, "a dropped state cannot be put back")
    own.shelf.close(done=True)


def _check_close(tier: Tier, done: bool, device: torch.device | None) -> None:
    own = _NumberShelf(tier, device)
    own.put(0, 0)
    own.shelf.close(done)
    assert _raises(lambda: own.shelf.get(0)), "a state can still be taken after close"
    try:
        own.shelf.close(done)
    except Exception as error:
        raise AssertionError(f"a shelf that is closed twice raises {error!r}") from error


def _check_two_at_once(tier: Tier, device: torch.device | None) -> None:
    shelves = _NumberShelf(tier, device), _NumberShelf(tier, device)
    for n, own in enumerate(shelves):
        own.put(0, n)
    for n, own in enumerate(shelves):
        own.take(0, n, "two shelves that are open at once take each other's states")
    first, second = shelves
    first.shelf.close(done=True)
    assert not _raises(lambda: second.shelf.get(0)), "closing a shelf takes the states of another"
    second.take(0, 1, "closing a shelf changes another")
    second.shelf.close(done=True)


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:  # whatever a tier raises
        return True
    return False


def _check_gradient(tier: Tier, device: torch.device | None) -> None:
    for make, tasks in (
        (lambda store: Every(1, store=store), None),
        (lambda store: Binomial(3, store=store), 2),
    ):
        expected = _gradient(make(Device()), tasks, device)
        try:
            found = _gradient(make(tier), tasks, device)
        except OdeoptError as error:
            raise AssertionError(f"a solve with the tier fails: {error}") from error
        assert all(map(_same, found, expected)), (
            "a gradient is not that of states kept on the device"
        )


def _gradient(
    checkpoints: CheckpointSchedule, tasks: int | None, device: torch.device | None
) -> list[Tensor]:
    _, params, batch, outer_batch, hparams = problem = smooth_problem(device, tasks)
    opt = ODEOptimizer(GradientFlow(problem.loss), checkpoints=checkpoints)
    call = opt.value_and_grad(problem.loss, tasks=tasks is not None)
    grads = call(params, batch, TimeGrid.from_lr(0.1, 9), outer_batch, hparams).grads
    return tree.tensors((grads.params, grads.hparams, grads.dt))


def _check_description(tier: Tier) -> None:
    before = describe(tier, "the tier")
    tier.open().close(done=True)
    assert describe(tier, "the tier") == before, (
        "the description of the tier, by which a solve is recognised, changes with its use: let"
        " settings() return what numbers depend on"
    )
