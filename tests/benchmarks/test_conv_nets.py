"""The four-block nets, against the papers' shapes and torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.problems import models
from benchmarks.problems.models import Choices

MAML_OMNIGLOT = (5, 28, 1, 64, (14, 7, 4, 2), 64)
MAML_MINI = (5, 84, 3, 32, (42, 21, 10, 5), 800)
IMAML_OMNIGLOT = (20, 28, 1, 64, (14, 7, 4, 2), 256)
PAPERS = {
    "maml-strided": MAML_OMNIGLOT, "maml-pooled": MAML_MINI, "imaml-strided": IMAML_OMNIGLOT,
}  # fmt: skip


def inputs(name, count=6):
    _, size, channels, *_ = PAPERS[name]
    return torch.rand(count, channels, size, size)


@pytest.mark.parametrize("name", list(PAPERS))
def test_the_shapes_of_the_papers(name):
    ways, _, channels, filters, sides, width = PAPERS[name]
    maps = []

    def watch(x):
        maps.append(tuple(x.shape[1:]))
        return torch.relu(x)

    net = models.NETS[name](ways, Choices(activation=watch))
    params, x = net.init(0), inputs(name)
    assert net.apply(params, x).shape == (6, ways)
    if name == "maml-pooled":  # the activation comes before the pooling
        sides = (84, *sides[:-1])
    assert maps == [(filters, side, side) for side in sides]
    assert net.features(params, x).shape == (6, width)
    convolutions = 9 * filters * (channels + 3 * filters) + 4 * filters
    assert models.count(params) == convolutions + 8 * filters + ways * (width + 1)
    assert net.head == ("head.weight", "head.bias")


class Imaml(nn.Module):
    """iMAML's net of torch's own layers."""

    def __init__(self):
        super().__init__()
        blocks = []
        for block in range(4):
            if block == 2:
                blocks.append(nn.ZeroPad2d((0, 1, 0, 1)))
            blocks += [
                nn.Conv2d(64 if block else 1, 64, 3, 2, 1),
                nn.BatchNorm2d(64, track_running_stats=False),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, 20))

    def forward(self, x):
        return self.layers(x)


class Maml(nn.Module):
    """MAML's net for mini-ImageNet of torch's own layers."""

    def __init__(self):
        super().__init__()
        blocks = []
        for block in range(4):
            blocks += [
                nn.Conv2d(32 if block else 3, 32, 3, padding="same"),
                nn.BatchNorm2d(32, track_running_stats=False),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.layers = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(800, 5))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(("name", "module"), [("imaml-strided", Imaml), ("maml-pooled", Maml)])
def test_the_function_of_torch_s_own_layers(name, module):
    ways = PAPERS[name][0]
    net = models.NETS[name](ways)
    params, reference = net.init(3), module()
    own = list(reference.parameters())
    assert [leaf.shape for leaf in own] == [leaf.shape for leaf in params.values()]
    with torch.no_grad():
        for leaf, value in zip(own, params.values(), strict=True):
            leaf.copy_(value)
    x = inputs(name)
    assert torch.allclose(net.apply(params, x), reference(x), rtol=1e-10, atol=1e-12)


def test_padding_as_tensorflow_s_same():
    """What is odd goes to the right and bottom: pixel 0 of the output sees pixels 0 to 2."""
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 2] = 1.0
    weight, bias = torch.zeros(1, 1, 3, 3), torch.zeros(1)
    weight[0, 0, 2, 2] = 1.0
    found = models._same_padding(x, weight, bias, block=0, stride=2)
    assert found.shape == (1, 1, 2, 2)
    assert found[0, 0, 0, 0] == 1.0


@pytest.mark.parametrize("name", list(PAPERS))
def test_batch_statistics_see_the_other_pictures_and_groups_do_not(name):
    x = inputs(name)
    for norm, alone in (("batch", False), ("group", True)):
        net = models.NETS[name](5, Choices(norm=models.NORMS[norm]))
        params = net.init(0)
        together, apart = net.apply(params, x)[:2], net.apply(params, x[:2])
        assert torch.allclose(together, apart) is alone


@pytest.mark.parametrize("activation", list(models.ACTIVATIONS))
def test_gradients_of_several_tasks_are_those_of_each(activation):
    choices = Choices(activation=models.ACTIVATIONS[activation])
    net = models.maml_strided(5, choices, filters=4)
    params = net.init(0)
    x, y = torch.rand(3, 5, 1, 28, 28), torch.arange(5)

    def loss(params, x):
        return functional.cross_entropy(net.apply(params, x), y)

    gradient = torch.func.grad(loss)
    together = torch.func.vmap(gradient, in_dims=(None, 0))(params, x)
    for task in range(3):
        for name, leaf in gradient(params, x[task]).items():
            assert torch.allclose(together[name][task], leaf, rtol=1e-8, atol=1e-12), name


def test_initial_weights():
    glorot = models.maml_strided(5).init(0)
    bound = (6 / (9 * 128)) ** 0.5
    weight = glorot["conv2.weight"]
    assert 0.98 * bound < weight.abs().max() <= bound
    assert glorot["conv2.bias"].abs().max() == 0
    wide = models.imaml_strided(5).init(0)
    assert 1.70 * bound < wide["conv2.weight"].abs().max() <= 1.73 * bound
    assert wide["conv2.bias"].min() >= 0
    assert 0.045 < wide["conv2.bias"].max() <= 0.05
    again = models.imaml_strided(5).init(0)
    assert all(torch.equal(wide[name], again[name]) for name in wide)
    other = models.imaml_strided(5).init(1)
    assert not torch.equal(wide["conv0.weight"], other["conv0.weight"])
