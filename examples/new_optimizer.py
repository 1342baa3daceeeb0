"""An optimizer of your own as an update rule: sign descent with a smooth sign.

Write one step for one parameter; its gradient through training, its use in recorded loops, batches
of tasks, kept states and compiled kernels come with it.
"""

import torch

import odeopt


@odeopt.FIELDS.register("smooth-sign")
class SmoothSign(odeopt.LeafwiseRule):
    """u = u - lr * tanh(m / width), with the mean m of the gradients."""

    slot_names = ("mean",)

    def __init__(self, loss, width=0.1, beta=0.9):
        super().__init__(loss)
        self._width, self._beta = width, beta

    def options(self):
        return {"width": self._width, "beta": self._beta}

    def step(self, k, lr, g, u, slots, options):
        mean = options["beta"] * slots["mean"] + (1 - options["beta"]) * g
        return u - lr * torch.tanh(mean / options["width"]), {"mean": mean}


torch.manual_seed(0)
x = torch.randn(100, 4)
y = torch.tanh(x @ torch.randn(4))


def loss(params, batch, hparams):
    return (torch.tanh(batch[0] @ params) - batch[1]).square().mean()


rule = SmoothSign(loss, width=lambda hparams: hparams["log_width"].exp())
call = odeopt.ODEOptimizer(rule).value_and_grad(loss)
hparams = {"log_width": torch.tensor(-2.0)}
result = call(torch.zeros(4), (x, y), odeopt.TimeGrid.from_lr(0.05, 40), (x, y), hparams)
print(result)
print("gradient w.r.t. the width:", f"{result.grads.hparams['log_width']:.4f}")
