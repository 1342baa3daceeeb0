"""Which labels are wrong? A weight for each training example, learned through the whole training.

A third of the labels is shuffled, and 60 examples have been checked by hand. Each outer update
trains a network from the same start, and moves the weights down the gradient of the checked loss.
"""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import odeopt

torch.manual_seed(0)
classes = torch.randn(3, 8)
x = torch.randn(360, 8)
y = (x @ classes.T).argmax(-1)
wrong = torch.rand(300) < 1 / 3
noisy = torch.where(wrong, torch.randint(3, (300,)), y[:300])
batches = list(DataLoader(TensorDataset(x[:300], noisy, torch.arange(300)), 100))
checked = x[300:], y[300:]

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
weights = torch.zeros(300, requires_grad=True)


def weighted(model, batch, weights):
    x, y, index = batch
    errors = cross_entropy(model(x), y, reduction="none")
    return (torch.sigmoid(weights[index]) * errors).mean()


def validation(model, batch, weights):
    return cross_entropy(model(batch[0]), batch[1])


outer = torch.optim.Adam([weights], lr=0.3)
for update in range(15):
    inner_optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with odeopt.RecordedLoop(model, inner_optimizer, weights) as inner:
        for step in range(30):
            inner.step(weighted, batches[step % len(batches)])
    outer.zero_grad()
    result = inner.backward(validation, checked)
    outer.step()
    if update % 5 == 4:
        doubted, false = weights < 0, noisy != y[:300]
        found, lost = doubted[false].float().mean(), doubted[~false].float().mean()
        print(f"update {update + 1}: loss {result.value:.3f}", end=", ")
        print(f"{found:.0%} of the wrong labels doubted, {lost:.0%} of the right ones")
