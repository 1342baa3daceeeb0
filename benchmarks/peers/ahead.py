"""Where another package, or a loop by hand, is ahead of odeopt."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.contenders import CONTENDERS, PEERS
from benchmarks.peers.criteria import times
from benchmarks.peers.runner import MAP

Found = dict[str, dict[str, Any]]


def sentences(found: Found) -> list[str]:
    """One for each peer that is faster, or needs less memory, than all of odeopt's.

    odeopt's are those with numbers that are as good: for the map's gradient the exact ones, for
    the flow's those whose error is no greater than the peer's.

    Args:
        found: The contenders of one point.
    """
    usable = {name: cell for name, cell in found.items() if not cell["outcome"]}
    return [text for peer in PEERS if peer in usable for text in _of(peer, usable)]


def _of(peer: str, usable: Found) -> list[str]:
    equals = _equals(peer, usable)
    label = CONTENDERS[peer].label
    if not equals:
        return [f"{label}: none of odeopt's configurations measured here is as accurate"]
    texts: list[str] = []
    for what, ratio in (("seconds", _seconds), ("peak memory", _bytes)):
        ratios = {name: ratio(usable[peer], usable[name]) for name in equals}
        best = max(ratios, key=lambda name: ratios[name])
        if ratios[best] < 1:
            texts.append(
                f"{label} is ahead in {what}: {ratios[best]:.2f} of {CONTENDERS[best].label}"
            )
    return texts


def _equals(peer: str, usable: Found) -> list[str]:
    mine = [name for name in usable if name.startswith("odeopt")]
    if CONTENDERS[peer].target == MAP:
        return [name for name in mine if CONTENDERS[name].target == MAP]
    error = usable[peer]["errors"]["B"]
    if error != error:  # noqa: PLR0124  (NaN)
        return mine
    return [name for name in mine if usable[name]["errors"]["B"] <= error]


def _seconds(cell: dict[str, Any], over: dict[str, Any]) -> float:
    return times(cell["seconds"], over["seconds"])


def _bytes(cell: dict[str, Any], over: dict[str, Any]) -> float:
    return cell["live_bytes"] / over["live_bytes"]
