"""Networks as functions of their parameters, against torch's own modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional

from benchmarks.problems import classification, models, transformer
from benchmarks.problems.transformer import Transformer


def test_the_perceptron_computes_what_torch_modules_do():
    model = models.mlp([2, 32, 32, 1])
    parameters = model.init(0)
    layers = [nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)]
    module = nn.Sequential(*layers).double()
    names = dict(zip(("layer0", "layer1", "layer2"), ("0", "2", "4"), strict=True))
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in parameters.items()}
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.apply(parameters, x), functional_call(module, state, x))
    assert models.count(parameters) == 1185


def test_the_conv_net_computes_what_torch_modules_do():
    model = models.conv_net(5)
    parameters = model.init(0)
    convolutions = [nn.Conv2d(1, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2, 1), nn.Tanh()]
    module = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 5)).double()
    names = {"conv0": "0", "conv1": "2", "head": "5"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in parameters.items()}
    x = classification.task(0).train.x
    torch.testing.assert_close(model.apply(parameters, x), functional_call(module, state, x))
    assert models.count(parameters) == 1573


@pytest.mark.parametrize("model", [models.mlp([64, 32, 5]), models.conv_net(5)])
def test_initial_parameters_fill_the_range_of_torch_defaults(model):
    parameters = model.init(3)
    for name, tensor in parameters.items():
        weight = parameters[name.replace("bias", "weight")]
        bound = weight[0].numel() ** -0.5
        assert tensor.dtype == torch.float64
        assert tensor.abs().max() <= bound
        assert tensor.abs().max() > 0.5 * bound


def test_initial_parameters_depend_on_the_seed_alone():
    model = models.mlp([2, 4, 1])
    torch.manual_seed(0)
    first = model.init(5)
    torch.manual_seed(1)
    assert all(torch.equal(first[name], value) for name, value in model.init(5).items())
    assert not torch.equal(first["layer0.weight"], model.init(6)["layer0.weight"])


def hessian_vector_product(loss, parameters, tangent):
    _, pull_back = vjp(grad(loss), parameters)
    return pull_back(tangent)[0]


@pytest.mark.parametrize(
    ("model", "prepare"),
    [(models.mlp([64, 8, 5]), classification.flatten), (models.conv_net(5), tuple)],
)
def test_second_derivatives_of_a_batch_of_tasks(model, prepare):
    task = prepare(classification.tasks(3, shots=2))
    parameters = model.init(0)
    tangent = model.init(1)

    def product(x, y):
        return hessian_vector_product(
            lambda p: models.cross_entropy(model.apply(p, x), y), parameters, tangent
        )

    together = vmap(product)(task[0].x, task[0].y)
    for index in range(3):
        alone = product(task[0].x[index], task[0].y[index])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value)


def test_the_models_map_over_parameters():
    for model, x in (
        (models.mlp([64, 8, 5]), torch.rand(3, 64)),
        (models.conv_net(5), torch.rand(3, 1, 8, 8)),
    ):
        each = [model.init(seed) for seed in range(2)]
        stacked = {name: torch.stack([p[name] for p in each]) for name in each[0]}
        outputs = vmap(model.apply, in_dims=(0, None))(stacked, x.double())
        for index, parameters in enumerate(each):
            torch.testing.assert_close(outputs[index], model.apply(parameters, x.double()))


def test_half_mean_square():
    prediction, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
    assert models.half_mean_square(prediction, y).item() == 0.5 * (1 + 4) / 2
    with pytest.raises(ValueError, match=r"\(2, 1\), targets \(2,\)"):
        models.half_mean_square(prediction, y[:, 0])


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

    net = models.NETS[name](ways, activation=watch)
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
        net = models.NETS[name](5, models.NORMS[norm])
        params = net.init(0)
        together, apart = net.apply(params, x)[:2], net.apply(params, x[:2])
        assert torch.allclose(together, apart) is alone


@pytest.mark.parametrize("activation", list(models.ACTIVATIONS))
def test_gradients_of_several_tasks_are_those_of_each(activation):
    thin = replace(models.NETS["maml-strided"], filters=4)
    net = thin(5, activation=models.ACTIVATIONS[activation])
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
    glorot = models.NETS["maml-strided"](5).init(0)
    bound = (6 / (9 * 128)) ** 0.5
    weight = glorot["conv2.weight"]
    assert 0.98 * bound < weight.abs().max() <= bound
    assert glorot["conv2.bias"].abs().max() == 0
    imaml = models.NETS["imaml-strided"](5)
    wide = imaml.init(0)
    assert 1.70 * bound < wide["conv2.weight"].abs().max() <= 1.73 * bound
    assert wide["conv2.bias"].min() >= 0
    assert 0.045 < wide["conv2.bias"].max() <= 0.05
    again = imaml.init(0)
    assert all(torch.equal(wide[name], again[name]) for name in wide)
    other = imaml.init(1)
    assert not torch.equal(wide["conv0.weight"], other["conv0.weight"])


MODEL = Transformer(len(transformer.ALPHABET), 12, 8, heads=2, blocks=2)


def test_no_character_sees_a_later_one():
    params = MODEL.init(0)
    codes = transformer.windows("train", 1, 10, 0.0, 0).codes.expand(10, -1).clone()
    for place in range(10):
        codes[place, place] = (codes[place, place] + 1) % len(transformer.ALPHABET)
    plain = MODEL.apply(params, transformer.windows("train", 1, 10, 0.0, 0).codes)[0]
    for place, changed in enumerate(MODEL.apply(params, codes)):
        assert torch.allclose(changed[:place], plain[:place], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(changed[place], plain[place])
        assert not torch.allclose(changed[-1], plain[-1])


def test_losses_are_those_of_the_next_characters():
    params = MODEL.init(1)
    codes = transformer.windows("test", 3, 9, 0.0, 0).codes
    found = MODEL.losses(params, codes)
    for index in range(3):
        logs = MODEL.apply(params, codes[index : index + 1, :-1])[0].log_softmax(-1)
        expected = -torch.stack([logs[k, codes[index, k + 1]] for k in range(8)]).mean()
        assert torch.allclose(found[index], expected, rtol=1e-12)


def test_windows_are_text_and_so_many_are_shuffled():
    whole = transformer.corpus("train")
    assert len(whole) > 100_000
    assert int(whole.max()) < len(transformer.ALPHABET)
    found, same = (transformer.windows("train", 20, 15, share, 3) for share in (0.25, 0.0))
    assert int(found.shuffled.sum()) == 5
    assert torch.equal(found.codes[~found.shuffled], same.codes[~found.shuffled])
    assert torch.equal(found.codes.sort(-1).values, same.codes.sort(-1).values)
    assert not torch.equal(found.codes, same.codes)
    readable = "".join(transformer.ALPHABET[code] for code in whole[:2000])
    assert " the " in readable
