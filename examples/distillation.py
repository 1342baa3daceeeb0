"""Data distillation: six synthetic examples on which a network learns what 600 would teach it.

The synthetic inputs are hyperparameters: the gradient of the loss on the real data goes through the
training on them.
"""

import torch
from torch.nn.functional import cross_entropy

import odeopt

torch.manual_seed(0)
centres = 2 * torch.randn(3, 6)
labels = torch.arange(600) % 3
real = centres[labels] + torch.randn(600, 6), labels
model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def on_synthetic(model, batch, hparams):
    return cross_entropy(model(hparams["x"]), batch)


def on_real(model, batch, hparams):
    return cross_entropy(model(batch[0]), batch[1])


hparams = {"x": torch.randn(6, 6)}
inner = odeopt.from_module(model, on_synthetic, hparams=hparams)
outer = odeopt.from_module(model, on_real, hparams=hparams)
problem = odeopt.BilevelProblem(
    odeopt.SGD(inner.loss, momentum=0.9), outer.evaluate, odeopt.TimeGrid.from_lr(0.1, steps=20)
)
synthetic_labels = torch.arange(6) % 3
arguments = inner.params, synthetic_labels, real
print(f"random examples: {problem.value(hparams, *arguments):.3f}")
learned = problem.minimize(
    hparams, *arguments, 40, show_progress=False,
    optimizer=lambda leaves: torch.optim.Adam(leaves, 0.1),
)  # fmt: skip
print(f"distilled ones: {problem.value(learned.hparams, *arguments):.3f}")
