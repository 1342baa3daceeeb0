"""What odeopt claims, whether the numbers bear it out, and where others are ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

from benchmarks.harness.outline import Cells
from benchmarks.peers import contenders as c
from benchmarks.peers.contenders import CONTENDERS, PEERS, Point
from benchmarks.peers.problems import MAP

RIVALS = (c.HIGHER, c.TORCHOPT)
FLOWS = (c.RK4, c.HERMITE, c.STABILISED)
TOLERATED = 1e-2
FASTER = {"float32": 10.0, "float64": 5.0}
CHECKPOINTED, MEMORY_SHARE = 4.0, 0.1
FLOW_FASTER = 80.0
EVALUATION_SHARE = 0.1
STATE_SHARES = {1e4: 1 / 30, 3e4: 1 / 100}
OVERHEAD, OVERHEAD_STEPS = 1.25, 500


class Criterion(NamedTuple):
    """A claim."""

    claim: str  # in words
    met: bool | None  # whether the numbers bear it out; None where they were not measured
    numbers: str  # what was measured

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "met", False: "**not met**", None: "not measured"}[self.met]


def evaluate(cells: Cells) -> list[Criterion]:
    """All claims, in the order of the report."""
    return [
        *(_exact(cells, dtype) for dtype in FASTER),
        _checkpoints(cells),
        _flow(cells),
        *(_stiff(cells, least) for least in STATE_SHARES),
        _overhead(cells),
    ]


def _reference(cells: Cells, dtype: str) -> dict[str, Any]:
    """The contenders with numbers at 500 steps and five tasks of the perceptron."""
    cell = cells.get(Point("mlp", 500, 5, dtype=dtype).key, {"contenders": {}})
    return {name: one for name, one in cell["contenders"].items() if not one["outcome"]}


def _exact(cells: Cells, dtype: str) -> Criterion:
    wanted = FASTER[dtype]
    claim = (
        f"500 exact steps, 5 tasks, {dtype}, every state kept: at least {wanted:g} times as fast as"
        " higher and TorchOpt"
    )
    entries = _reference(cells, dtype)
    speeds = _speeds(entries, c.OURS)
    if not speeds:
        return Criterion(claim, None, "")
    bare = _speeds(entries, c.KERNELS)
    ceiling = f" (the bare kernels: {_times(bare)})" if bare else ""
    return Criterion(claim, min(speeds.values()) >= wanted, _times(speeds) + ceiling)


def _checkpoints(cells: Cells) -> Criterion:
    claim = (
        "the same with `Binomial` or `Density`, float32: at most a tenth of their memory, and at"
        f" least {CHECKPOINTED:g} times as fast"
    )
    entries = _reference(cells, "float32")
    texts: list[str] = []
    met = False
    for name in (c.BINOMIAL, c.DENSITY):
        speeds = _speeds(entries, name)
        if speeds:
            shares = {
                rival: entries[name]["live_bytes"] / entries[rival]["live_bytes"]
                for rival in speeds
            }
            fits = max(shares.values()) <= MEMORY_SHARE
            met = met or (fits and min(speeds.values()) >= CHECKPOINTED)
            memory = ", ".join(f"{share:.3f} of {_label(r)}'s" for r, share in shares.items())
            texts.append(f"{_label(name)}: {_times(speeds)}; memory {memory}")
    return Criterion(claim, met if texts else None, "; ".join(texts))


def _flow(cells: Cells) -> Criterion:
    claim = (
        f"the flow's gradient at T = 5 to {TOLERATED:g}, float32: at least {FLOW_FASTER:g} times as"
        " fast as higher's 500 steps"
    )
    entries = _reference(cells, "float32")
    measured = [name for name in FLOWS if name in entries]
    if c.HIGHER not in entries or not measured:
        return Criterion(claim, None, "")
    good = [name for name in measured if entries[name]["errors"]["B"] <= TOLERATED]
    if not good:
        return Criterion(claim, False, "no configuration is that accurate")
    best = min(good, key=lambda name: median(entries[name]["seconds"]))
    ratio = times(entries[c.HIGHER]["seconds"], entries[best]["seconds"])
    numbers = f"{_label(best)}: {ratio:.1f} times, error {entries[best]['errors']['B']:.1e}"
    return Criterion(claim, ratio >= FLOW_FASTER, numbers)


def _stiff(cells: Cells, least: float) -> Criterion:
    share = STATE_SHARES[least]
    claim = (
        rf"$\rho T$ of {least:g} and more: `StabilizedRK` needs at most a tenth of the evaluations"
        f" and 1/{round(1 / share)} of the stored states of gradient descent at the edge of"
        " stability, for the same error"
    )
    higher = min((limit for limit in STATE_SHARES if limit > least), default=float("inf"))
    runs = [
        cell for key, cell in cells.items()
        if key.startswith("stiff") and not cell["outcome"] and least <= cell["stiffness"] < higher
    ]  # fmt: skip
    verdicts = [_stiff_run(cell, share) for cell in runs]
    met = all(met for met, _ in verdicts) if verdicts else None
    return Criterion(claim, met, "; ".join(text for _, text in verdicts))


def _stiff_run(cell: dict[str, Any], share: float) -> tuple[bool, str]:
    at, descent = f"{cell['stiffness']:.2g}", cell["descent"]
    if descent["failure"]:
        return False, f"{at}: gradient descent failed ({descent['failure']})"
    good = [one for one in cell["stabilised"] if not one["failure"]]
    good = [one for one in good if one["error"] <= descent["error"]]
    if not good:
        return False, f"{at}: no tolerance reaches the error {descent['error']:.1e}"
    chosen = min(good, key=itemgetter("evaluations"))
    evaluations = chosen["evaluations"] / descent["evaluations"]
    states = chosen["stored_states"] / descent["stored_states"]
    text = (
        f"{at}: {evaluations:.3f} of the evaluations, 1/{1 / states:.0f} of the states (errors"
        f" {chosen['error']:.1e} and {descent['error']:.1e})"
    )
    return evaluations <= EVALUATION_SHARE and states <= share, text


def _overhead(cells: Cells) -> Criterion:
    claim = (
        f"a solve takes at most {OVERHEAD:g} times as long as the bare compiled kernels, for"
        f" {OVERHEAD_STEPS} steps and more, in one process"
    )
    ratios: dict[int, float] = {}
    for key, cell in cells.items():
        steps = int(key.split("=")[1]) if key.startswith("overhead") else 0
        if steps >= OVERHEAD_STEPS and not cell["outcome"]:
            ratios[steps] = ratio(cell["entries"], c.OURS, c.KERNELS)
    if not ratios:
        return Criterion(claim, None, "")
    numbers = ", ".join(f"{value:.2f} times at {steps} steps" for steps, value in ratios.items())
    return Criterion(claim, max(ratios.values()) <= OVERHEAD, numbers)


def ratio(entries: Iterable[dict[str, Any]], name: str, over: str) -> float:
    """How many times as long one contender takes as another, in one process."""
    seconds = {entry["contender"]: entry["seconds"] for entry in entries}
    return times(seconds[name], seconds[over])


def times(seconds: Sequence[float], over: Sequence[float]) -> float:
    """The median ratio of two times in the same round; of the medians if rounds are missing.

    Other work on the machine slows a whole round down, and leaves its ratios as they are.
    """
    if len(seconds) != len(over):
        return median(seconds) / median(over)
    return median(own / other for own, other in zip(seconds, over, strict=True))


def _speeds(entries: dict[str, Any], name: str) -> dict[str, float]:
    """How many times as fast as each rival; empty where somebody has no numbers."""
    if not {name, *RIVALS} <= entries.keys():
        return {}
    return {rival: times(entries[rival]["seconds"], entries[name]["seconds"]) for rival in RIVALS}


def _times(speeds: dict[str, float]) -> str:
    return ", ".join(f"{value:.1f} times {_label(name)}" for name, value in speeds.items())


def _label(name: str) -> str:
    return c.CONTENDERS[name].label


def ahead(cells: Cells) -> list[str]:
    """One sentence for each peer that is faster, or needs less memory, than all of odeopt's.

    odeopt's are those with numbers that are as good: for the map's gradient the exact ones, for
    the flow's those whose error is no greater than the peer's.
    """
    usable = {name: cell for name, cell in cells.items() if not cell["outcome"]}
    texts: list[str] = []
    for peer in filter(usable.__contains__, PEERS):
        label, own = _label(peer), usable[peer]
        equals = {name: usable[name] for name in _as_good(peer, usable)}
        if not equals:
            texts.append(f"{label}: none of odeopt's configurations measured here is as accurate")
            continue
        seconds = {n: times(own["seconds"], other["seconds"]) for n, other in equals.items()}
        memory = {n: own["live_bytes"] / other["live_bytes"] for n, other in equals.items()}
        for what, ratios in (("seconds", seconds), ("peak memory", memory)):
            best = max(ratios, key=lambda name, own=ratios: own[name])
            if ratios[best] < 1:
                texts.append(f"{label} is ahead in {what}: {ratios[best]:.2f} of {_label(best)}")
    return texts


def _as_good(peer: str, usable: Cells) -> list[str]:
    mine = [name for name in usable if name.startswith("odeopt")]
    if CONTENDERS[peer].target == MAP:
        return [name for name in mine if CONTENDERS[name].target == MAP]
    error = usable[peer]["errors"]["B"]
    if error != error:  # noqa: PLR0124  (NaN)
        return mine
    return [name for name in mine if usable[name]["errors"]["B"] <= error]
