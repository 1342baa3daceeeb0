"""MAML on sinusoids: an initialisation from which ten examples are enough.

Every task is a sinusoid of its own. The inner loop is gradient descent on ten points; the outer
loss is that of other points, and its gradient goes through the inner loop.
"""

import torch

import odeopt

torch.manual_seed(0)


def sinusoids(tasks):
    """Points of so many sinusoids, shape [tasks, 20, 1] each; half of them to learn from."""
    amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), torch.pi * torch.rand(tasks, 1, 1)
    x = 10 * torch.rand(tasks, 20, 1) - 5
    return x, amplitude * torch.sin(x + phase)


def halves(tasks):
    x, y = sinusoids(tasks)
    return odeopt.TaskBatch((x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:]))


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


model = torch.nn.Sequential(
    torch.nn.Linear(1, 40), torch.nn.Tanh(), torch.nn.Linear(40, 40), torch.nn.Tanh(),
    torch.nn.Linear(40, 1),
)  # fmt: skip
learner = odeopt.MetaLearner(
    "maml", model, lambda update: halves(8), loss=mse, settings={"lr": 0.01, "steps": 5}, clip=10.0
)
held_out = halves(100)
print(f"before: {learner.evaluate(held_out).mean():.2f}")
learner.fit(200)
print(f"after 200 updates: {learner.evaluate(held_out).mean():.2f}")
