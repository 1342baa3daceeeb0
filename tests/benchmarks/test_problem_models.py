"""The functional networks and losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vjp, vmap

from benchmarks.problems import classification, models


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
        (models.conv_net(), torch.rand(3, 1, 8, 8)),
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
