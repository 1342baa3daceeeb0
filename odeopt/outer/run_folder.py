"""The folder of a run: its checkpoint by the names of what is learned, and who may write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain, count
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from odeopt.checkpoint.store.checked_file import FileKind, read_header
from odeopt.errors import InputError, StorageError
from odeopt.outer.metrics import MetricsFile
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently, differing
from odeopt.tools.locks import FolderLock
from odeopt.tools.types import PyTree
from odeopt.tools.version import versions

_CHECKPOINT = FileKind(
    "checkpoint",
    "Give the learner a folder that can be written to and has room.",
    "Look at the disk; put a copy of the file back, or begin again in another folder.",
)

_SHOWN = 3


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after some updates.

    Attributes:
        made_with: the versions of what has computed.
        settings: the parts of the run as text, by name.
        layout: dtypes and shapes of what is learned, by name.
        updates: how many have been made.
        tensors: what is learned, by name.
        optimizer: the memory of the outer optimiser, by name.
        random: the state of torch's random numbers on the CPU.
        schedule: that of the learning-rate schedule, if there is one.
    """

    made_with: str
    settings: dict[str, str]
    layout: dict[str, str]
    updates: int
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: Tensor
    schedule: dict[str, Any] | None = None

    def write(self, path: Path) -> bytes:
        """Write it atomically; the header of the file is returned.

        Raises:
            StorageError: if it cannot be written.
        """
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        return _CHECKPOINT.save(path, content)

    @classmethod
    def read(cls, path: Path) -> tuple[bytes, Checkpoint]:
        """The header of a file and what it holds, on the CPU.

        Raises:
            StorageError: if it is not there, damaged, or of another format.
        """
        header, content = _CHECKPOINT.load(path, "cpu")
        return header, cls(**content)

    def check_settings(self, own: Mapping[str, str], path: Path) -> None:
        """Raise `InputError` if it was made by another run."""
        names = differing(self.settings, own)
        if names:
            others = f" (by {self.made_with}; this is {versions()})"
            raise InputError(
                f"{path} was made by another run{others if self.made_with != versions() else ''},"
                f" which differs in {', '.join(names)}. Make the learner as that one was made, or"
                " give another folder. Where an object differs in nothing that matters, as in a"
                " counter of its calls, give its class a method settings() that returns what"
                " matters."
            )

    def check_layout(self, own: Mapping[str, str], path: Path) -> None:
        """Raise `InputError` if something else was learned."""
        wrong = [
            f"{name} is {self.layout.get(name, 'not there')}, expected {own.get(name, 'nothing')}"
            for name in differing(self.layout, own)
        ]
        if wrong:
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise InputError(
                f"{path} holds other parameters or hparams than those of this learner:"
                f" {'; '.join(wrong[:_SHOWN])}{more}. Make the learner as that one was made, or"
                " give another folder."
            )


CHECKPOINT, METRICS, LOCK = "checkpoint.pt", "metrics.jsonl", "run.lock"


@final
class RunFolder:
    """The folder of a run, as one learner sees it.

    Attributes:
        path: where it is.
        checkpoint: the path of the checkpoint.
        metrics: the file of metrics.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / CHECKPOINT
        self.metrics = MetricsFile(path / METRICS)
        self._lock: FolderLock | None = None
        self._owned = False
        self._known: bytes | None = None
        """The header of the checkpoint that this learner has written or restored last."""

    def lock(self) -> bool:
        """Keep other learners out; false if this one has done so already.

        Raises:
            StorageError: if another learner runs here, or the folder cannot be written to.
        """
        if self._lock is not None and self._lock.is_held:  # not by the process it was forked from
            return False
        try:
            self._lock = FolderLock.take_in(self.path, LOCK)
        except OSError as error:
            raise StorageError(
                f"the learner's folder {self.path} cannot be written to: {error}. Give it one that"
                " can."
            ) from error
        if self._lock is None:
            raise StorageError(
                f"{self.path} is in use by another learner, of this process or of another. Wait"
                " until its fit has ended, or give each learner a folder of its own."
            )
        return True

    def unlock(self) -> None:
        """Let other learners in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def claim(self, updates: int) -> None:
        """Make it the folder of this learner, which has made so many updates.

        Raises:
            InputError: if it holds another run, or another learner has gone on with this one.
        """
        now = read_header(self.checkpoint)
        if now is not None and not self._owned:
            raise InputError(
                f"{self.path} holds the checkpoint of another run: call restore() to go on with"
                " it, or give another folder."
            )
        self._check(now)
        self.metrics.truncate(updates)
        self._owned = True

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, in place of this learner's last one.

        Raises:
            InputError: if it is another learner's.
        """
        self._check(read_header(self.checkpoint))
        self._known = checkpoint.write(self.checkpoint)

    def go_on_from(self, header: bytes) -> None:
        """Go on from the checkpoint that has this header."""
        self._owned, self._known = True, header

    def _check(self, now: bytes | None) -> None:
        if now is not None and now != self._known:
            raise InputError(
                f"{self.checkpoint} was written by another learner since this one wrote or restored"
                " it: call restore() to go on from there, or give another folder."
            )


def named_leaves(learned: Mapping[str, PyTree]) -> dict[str, Any]:
    """The leaves of all trees by name, e.g. `params['weight']`."""
    return {
        what + path.removeprefix("<root>"): leaf
        for what, own in learned.items()
        for path, leaf in zip(tree.paths(own), tree.leaves(own), strict=True)
    }


def layout(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The dtype and shape of each tensor by name; other leaves as they are."""
    return {
        name: f"{leaf.dtype} {list(leaf.shape)}"
        if isinstance(leaf, Tensor)
        else describe_leniently(leaf)
        for name, leaf in leaves.items()
    }


@final
class NamedOptimizer:
    """An outer optimiser whose memory goes by the names of what it moves.

    Args:
        optimizer: it.
        leaves: what it moves, by name.
    """

    def __init__(self, optimizer: Optimizer, leaves: Mapping[str, Any]) -> None:
        self._optimizer = optimizer
        self._known = {id(leaf): name for name, leaf in leaves.items()}

    def settings(self) -> dict[str, str]:
        """Its class, its options and its groups as text, by name; before its first step."""
        kind = type(self._optimizer)
        pairs = zip(self._names(), self.options(), strict=True)
        groups = [(sorted(names), options) for names, options in pairs]
        options = {
            f"the outer optimizer's {name}": describe_leniently(value)
            for name, value in self._optimizer.defaults.items()
        }
        return {
            "the outer optimizer": f"{kind.__module__}.{kind.__qualname__}",
            **options,
            "the groups of the outer optimizer": describe_leniently(groups),
        }

    def options(self) -> list[dict[str, Any]]:
        """The options of each group, learning rates among them, as they are now."""
        return [_without_params(group) for group in self._optimizer.param_groups]

    def state(self) -> dict[str, Any]:
        """Its memory and the options of the moment."""
        state = self._optimizer.state_dict()
        names = dict(enumerate(chain(*self._names())))
        memory = {names.get(key, key): value for key, value in state["state"].items()}
        groups = [_without_params(group) for group in state["param_groups"]]
        return {**state, "state": memory, "param_groups": groups}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        places = {name: place for place, name in enumerate(chain(*self._names()))}
        memory = {places.get(key, key): value for key, value in state["state"].items()}
        own = self._optimizer.state_dict()["param_groups"]
        groups = [
            {**group, "params": mine["params"]}
            for group, mine in zip(state["param_groups"], own, strict=True)
        ]
        self._optimizer.load_state_dict({**state, "state": memory, "param_groups": groups})

    def _names(self) -> list[list[str]]:
        """The names in each group."""
        places = count()
        return [
            [self._known.get(id(leaf), f"another at {next(places)}") for leaf in group["params"]]
            for group in self._optimizer.param_groups
        ]


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
