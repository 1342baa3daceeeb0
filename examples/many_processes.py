"""Meta-learning in many processes: `torchrun --standalone --nproc-per-node=2 many_processes.py`.

The tasks of each batch are divided among the processes, and every one of them comes to the same
parameters. Without torchrun the program runs alone.
"""

import torch

import odeopt


def ridge(params, batch):
    x, y = batch
    return (x @ params - y).square().mean() + 0.01 * params.square().sum()


def tasks(update):
    """Linear functions near a common one; the same for an update in every process."""
    draw = torch.Generator().manual_seed(update)
    x = torch.randn(8, 20, 5, generator=draw)
    slopes = 1 + 0.3 * torch.randn(8, 5, 1, generator=draw)
    y = (x @ slopes)[..., 0]
    return odeopt.TaskBatch((x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:]))


torch.manual_seed(0)
with odeopt.Workers() as workers:
    learner = odeopt.MetaLearner(
        "maml", torch.zeros(5), tasks, lambda leaves: torch.optim.SGD(leaves, 0.3), loss=ridge,
        settings={"lr": 0.1, "steps": 5}, workers=workers, show_progress=False,
    )  # fmt: skip
    steps = learner.fit(50)
    if workers.rank == 0:
        print(f"outer loss: {steps[0].value:.4f} at first, {steps[-1].value:.4f} in the end")
        print("initialisation:", [round(u, 2) for u in learner.params.tolist()])
