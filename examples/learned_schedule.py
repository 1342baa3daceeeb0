"""A learning rate for each step, learned by the gradient through training.

The rates are one tensor; the gradient w.r.t. each of them comes with the others from one backward
sweep.
"""

import torch

import odeopt

torch.manual_seed(0)
x, noise = torch.randn(200, 10), 0.1 * torch.randn(200)
y = x @ torch.randn(10) + noise
train, held_out = (x[:100], y[:100]), (x[100:], y[100:])


def mse(params, batch, hparams):
    return (batch[0] @ params - batch[1]).square().mean()


problem = odeopt.BilevelProblem(
    odeopt.SGD(mse, momentum=0.5),
    mse,
    grid=lambda hparams: odeopt.TimeGrid.from_lr(hparams["log_rates"].exp()),
)
start = {"log_rates": torch.full((20,), -4.0)}
params = torch.zeros(10)
print(f"constant rate: {problem.value(start, params, train, held_out):.4f}")
learned = problem.minimize(
    start, params, train, held_out, 60,
    optimizer=lambda leaves: torch.optim.Adam(leaves, 0.1), show_progress=False,
)  # fmt: skip
print(f"learned rates: {problem.value(learned.hparams, params, train, held_out):.4f}")
print("rates:", " ".join(f"{rate:.3f}" for rate in learned.hparams["log_rates"].exp()))
