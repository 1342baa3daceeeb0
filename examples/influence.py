"""What does each training example do to each test error? One training, many outer losses.

`many=True` gives the gradient of every test error w.r.t. the weight of every training example, from
one forward and one backward sweep.
"""

import torch

import odeopt

torch.manual_seed(0)
x = torch.randn(60, 5)
y = x @ torch.randn(5) + 0.1 * torch.randn(60)
y[7] += 5.0  # one example is wrong
train, test = (x[:40], y[:40]), (x[40:], y[40:])


def errors(model, batch, weights):
    return (model(batch[0])[:, 0] - batch[1]).square()


def weighted(model, batch, weights):
    return (weights * errors(model, batch, weights)).mean()


model, weights = torch.nn.Linear(5, 1), torch.ones(40, requires_grad=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
with odeopt.RecordedLoop(model, optimizer, weights) as inner:
    for _ in range(100):
        inner.step(weighted, train)
result = inner.value_and_grad(errors, test, many=True)
effects = result.grads.hparams  # [test examples, training examples]
print("shape of the effects:", list(effects.shape))
print("does most harm:", int(effects.sum(0).argmax()))
