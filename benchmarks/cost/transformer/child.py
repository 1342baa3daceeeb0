"""One cell, in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.cost.transformer import training
from benchmarks.cost.transformer.sizes import Sizes
from benchmarks.cost.transformer.training import Problem
from benchmarks.harness import memory
from benchmarks.harness.memory import LivePeak
from benchmarks.harness.timing import once
from odeopt.testing import relative_error

PLAIN, ACCUMULATED, META = "plain", "accumulated", "meta"
PEAKS = (PLAIN, ACCUMULATED, META)
GRADIENT, CHECK = "gradient", "check"
COMPILE = None


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        kind: One of `PEAKS`, `GRADIENT` or `CHECK`.
        sizes: Of the run.
        device: Where to compute.
    """

    kind: str
    sizes: Sizes
    device: str


def measure(job: Job) -> dict[str, Any]:
    """The result of a job."""
    sizes, device = job.sizes, torch.device(job.device)
    if job.kind == CHECK:
        return check(sizes, device)
    problem = training.make(sizes, device)
    found = gradient(problem, device) if job.kind == GRADIENT else peak(job.kind, problem, device)
    return {"outcome": "", **found}


def check(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The error of the gradient against unrolled autograd, in float64, on a few steps."""
    few = replace(sizes, steps=sizes.check_steps, slots=2)
    problem = training.make(few, device, torch.float64)
    found = training.meta(problem, None)().grads.hparams
    error = relative_error(found, training.unrolled(problem, few.steps))
    return {"outcome": "", "error": error}


def gradient(problem: Problem, device: torch.device) -> dict[str, Any]:
    """Seconds over those of plain training, and what the gradient says of shuffled windows."""
    with_pieces = training.plain(problem, problem.sizes.micro)
    differentiate = training.meta(problem, COMPILE)
    found: list[Any] = []
    plain = once(lambda: found.append(with_pieces()), device)
    meta = once(lambda: found.append(differentiate()), device)
    params, result = found
    shuffled = problem.train.shuffled.numpy()
    with torch.no_grad():
        losses = problem.model.losses(params, problem.train.codes)
        validation = problem.outer_loss(params, problem.validation, losses).item()
    harm = result.grads.hparams.cpu()
    return {
        "ratio": meta / plain, "validation": validation, "value": result.value.item(),
        "gradient_auc": float(roc_auc_score(shuffled, harm.numpy())),
        "loss_auc": float(roc_auc_score(shuffled, losses.cpu().numpy())),
        "replayed": result.stats.replayed_steps, "hvps": result.stats.hvps,
        "harm": harm.tolist(), "shuffled": problem.train.shuffled.tolist(),
        "gradient_evaluations": result.stats.gradient_evaluations,
    }  # fmt: skip


def peak(kind: str, problem: Problem, device: torch.device) -> dict[str, Any]:
    """The most bytes of live tensors, after a short run of the same; for `META` also kept ones."""
    recorder, stream = LivePeak(ticks=5), problem.stream
    ticking = False

    def batch(k: int) -> training.Batch:
        if ticking:
            recorder.tick()
        return stream(k)

    watched = problem._replace(stream=batch)
    runs = {
        PLAIN: lambda: training.plain(watched, 1),
        ACCUMULATED: lambda: training.plain(watched, problem.sizes.micro),
        META: lambda: training.meta(watched, COMPILE),
    }
    short = replace(problem.sizes, steps=1)
    training.plain(problem._replace(sizes=short), 1)()  # loads libraries
    found: list[Any] = []
    run = runs[kind]()
    if device.type == "cuda":
        size = memory.peak_live_bytes(lambda: found.append(run()), device)
    else:
        ticking = True
        with recorder:
            found.append(run())
        size = recorder.bytes
    kept = {"kept_bytes": found[0].stats.stored_bytes} if kind == META else {}
    return {"bytes": size, "parameters": _count(problem), **kept}


def _count(problem: Problem) -> int:
    return sum(leaf.numel() for leaf in problem.params.values())
