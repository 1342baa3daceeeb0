"""What each of the processes runs that the tests start: `python program.py PART FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from support import distributed as cases

import odeopt
from odeopt.outer.run_folder import RunFolder
from odeopt.outer.workers.spreading import SpreadMethod
from tests.outer.workers.disagreements import disagreements

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def caught(make):
    """The error of a call, in words."""
    try:
        make()
    except Exception as error:
        return {
            "kind": type(error).__name__,
            "message": str(error),
            "notes": list(getattr(error, "__notes__", ())),
        }
    return None


def results(workers):
    spread = partial(odeopt.spread, workers=workers)
    return {name: cases.numbers(case(spread)) for name, case in cases.CASES.items()}


def copies(workers):
    spread = partial(odeopt.spread, workers=workers)
    return {kind: cases.copied(spread, kind) for kind in cases.COPIES}


def methods(workers):
    def spread(method):
        found = SpreadMethod(method, workers)
        found.init_hparams = method.init_hparams
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the inner problem has not converged")
        return {name: cases.meta_gradient(name, spread) for name in odeopt.METHODS.names()}


def errors(workers):
    spread, rank = partial(odeopt.spread, workers=workers), workers.rank

    def broken(params, batch):
        if os.environ["RANK"] == "1":
            raise KeyError("no such thing")
        return (params - batch).square().sum()

    def call(loss, batch, params=(0.0, 0.0)):
        opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss))
        grid = odeopt.TimeGrid.from_lr(0.1, 2)
        return spread(opt.value_and_grad(loss, tasks=True))(
            torch.tensor(params), batch, grid, torch.ones(3, 2)
        )

    def square(params, batch):
        return (params - batch).square().sum()

    ones = torch.ones(3, 2)
    return {
        "diverging": caught(lambda: cases.failing(spread, [1e-3, 1e-3, 1e-3, 1.0], "raise")),
        "all fail": caught(lambda: cases.failing(spread, [1.0, 2.0])),
        "broken": caught(lambda: call(broken, ones)),
        "another batch": caught(lambda: call(square, ones * (1 + rank))),
        "other parameters": caught(lambda: call(square, ones, (0.0, float(rank)))),
        "other shapes": caught(lambda: call(square, torch.ones(3 + rank, 2))),
        "random": caught(lambda: call(square, odeopt.Stream.constant(ones, seed=0))),
        "another place": caught(lambda: workers.gather(f"place {rank}", lambda: None)),
    }


def training(workers, folder):
    """Runs with two workers; `alone` was begun by one."""
    found = {}
    for name in ("maml", "meta-sgd", "reptile"):
        run = cases.learner(name, folder=folder / name, workers=workers, checkpoint_every=2)
        run.fit(6)
        found[name] = cases.learned(run)
    parts = partial(cases.learner, "meta-sgd", folder=folder / "parts", checkpoint_every=2)
    interrupted = caught(lambda: parts(workers=workers, callback=stop_at_4).fit(6))
    again = parts(workers=workers)
    assert again.restore()
    found["resumed"] = cases.learned(again), again.updates, interrupted["kind"]
    again.fit(6)
    found["parts"] = cases.learned(again)
    found["again"] = caught(lambda: parts(workers=workers).fit(6))
    found["other"] = caught(lambda: parts(workers=workers, clip=1.0).restore())
    found["busy"] = busy(workers, folder / "parts", [again.save, lambda: again.fit(7)])
    alone = cases.learner("meta-sgd", folder=folder / "alone", workers=workers)
    assert alone.restore()
    alone.fit(6)
    found["alone"] = cases.learned(alone)
    return found


def busy(workers, folder, calls):
    """What calls raise while worker 1 keeps others out of the folder."""
    other = RunFolder(folder)
    workers.gather("the calls before", lambda: None)  # worker 0 has left the folder
    workers.gather("the lock", other.lock if workers.rank == 1 else lambda: None)
    found = [caught(call) for call in calls]
    workers.gather("the calls", lambda: None)
    other.unlock()
    return found


def stop_at_4(step):
    if step.update == 4:
        raise odeopt.OdeoptError("stop here")


def failures(workers):
    def tasks(k):
        if workers.rank == 1:
            raise FileNotFoundError("data.pt")
        return torch.ones(2, 1), torch.ones(2, 1)

    other = cases.learner(workers=workers)
    other.params["out"] += workers.rank
    raising = cases.wild_learner(workers=workers, on_failure="raise")
    return {
        "maml": skipping("maml", workers),
        "reptile": skipping("reptile", workers),
        "raised": caught(lambda: raising.fit(2)),
        "no data": caught(lambda: cases.learner(tasks=tasks, workers=workers).fit(1)),
        "other start": caught(lambda: other.fit(1)),
    }


def skipping(name, workers):
    run = cases.wild_learner(name, workers=workers)
    return [(step.value, step.failed) for step in run.fit(2)], run.params


def in_a_group_of_the_user(folder):
    """A group that is there is used, and stays."""
    rank, method = int(os.environ["RANK"]), f"file://{folder}/group"
    torch.distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    with odeopt.Workers(timeout=60.0) as workers:
        found = cases.numbers(cases.CASES["uneven"](partial(odeopt.spread, workers=workers)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return found


def gloo_threads():
    """Threads of a process group; one left at the end of a process can abort it."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
    return [name for name in names if "gloo" in name]


def everything(folder):
    with odeopt.Workers(timeout=60.0) as workers:
        found = {
            "results": results(workers),
            "copies": copies(workers),
            "methods": methods(workers),
            "errors": errors(workers),
            "disagreements": {name: caught(make) for name, make in disagreements(workers).items()},
            "training": training(workers, folder),
            "failures": failures(workers),
            "workers": (workers.rank, workers.count, str(workers.device)),
        }
    assert not torch.distributed.is_initialized()
    found["threads"] = gloo_threads()
    found["in a group"] = in_a_group_of_the_user(folder)
    torch.save(found, folder / f"found-{workers.rank}.pt")


def lost(folder):
    """Worker 1 is killed, or hangs, in update 3; the other says what it was told and how soon."""
    hangs, timeout = "HANGS" in os.environ, float(os.environ["TIMEOUT"])
    begin = []

    def callback(step):
        if step.update == 2:
            begin.append(time.monotonic())
            if workers.rank == 1 and hangs:
                time.sleep(60.0)
            elif workers.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    with odeopt.Workers(timeout=timeout) as workers:
        run = cases.learner(folder=folder, workers=workers, checkpoint_every=2, callback=callback)
        try:
            run.fit(6)
        except odeopt.WorkerError as error:
            print(f"{time.monotonic() - begin[0]:.1f} {error}")


def leaving(folder):
    """Worker 1 leaves with an error of its own while the other waits for it."""
    with odeopt.Workers(timeout=60.0) as workers:
        if workers.rank == 1:
            raise FileNotFoundError("data.pt is not there\nmore")
        found = caught(lambda: workers.gather("the data", lambda: None))
        (folder / "said").write_text(found["message"])


if __name__ == "__main__":
    {"everything": everything, "lost": lost, "leaving": leaving}[sys.argv[1]](Path(sys.argv[2]))
