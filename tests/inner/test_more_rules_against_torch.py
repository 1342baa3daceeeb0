"""Adagrad, Adadelta, Adamax, NAdam, RAdam, ASGD and Rprop are torch.optim's; so is `maximize`."""

import pytest
import torch

import odeopt
from odeopt.testing import relative_error
from odeopt.tools import tree

SMALL = {"eps": 1e-4}
"""With little momentum eps must be larger: otherwise torch's own result moves by 1e-3 when the
parameters move by 1e-15."""

OPTIONS = {
    "Adagrad": [
        {}, {"lr_decay": 0.05}, {"weight_decay": 0.3}, {"initial_accumulator_value": 0.2},
        {"eps": 0.1}, {"lr_decay": 0.01, "initial_accumulator_value": 0.5, "weight_decay": 0.01},
    ],
    "Adadelta": [
        {"eps": 1e-3}, {"rho": 0.5, "eps": 1e-2}, {"rho": 0.0, "eps": 0.1},
        {"weight_decay": 0.3, "eps": 1e-3}, {},
    ],
    "Adamax": [
        {}, {"betas": (0.5, 0.9)}, {"betas": (0.0, 0.0), "eps": 0.1}, {"weight_decay": 0.3},
        {"eps": 0.05},
    ],
    "NAdam": [
        SMALL, {"betas": (0.5, 0.9), "eps": 0.02}, {"betas": (0.0, 0.5), "eps": 0.1},
        {"momentum_decay": 0.3, **SMALL}, {"momentum_decay": 0.0, **SMALL},
        {"weight_decay": 0.3, **SMALL},
        {"weight_decay": 0.3, "decoupled_weight_decay": True, **SMALL},
    ],
    "RAdam": [
        SMALL, {"betas": (0.8, 0.9), **SMALL}, {"betas": (0.5, 2 / 3)}, {"betas": (0.9, 0.6)},
        {"betas": (0.0, 0.0)}, {"betas": (0.9, 0.7), "eps": 0.1}, {"weight_decay": 0.3, **SMALL},
        {"weight_decay": 0.3, "decoupled_weight_decay": True, **SMALL},
    ],
    "ASGD": [
        {}, {"lambd": 0.3}, {"lambd": 0.3, "alpha": 0.4}, {"lambd": 0.0}, {"t0": 3, "lambd": 0.1},
        {"t0": 0}, {"weight_decay": 0.3},
    ],
    "Rprop": [
        {}, {"etas": (0.3, 1.5)}, {"step_sizes": (1e-3, 0.02)}, {"step_sizes": (0.02, 0.5)},
    ],
    "SGD": [{"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.3}],
    "Adam": [{"weight_decay": 0.3, "amsgrad": True, **SMALL}],
    "AdamW": [{"weight_decay": 0.3, **SMALL}],
    "RMSprop": [{"weight_decay": 0.3, "centered": True, "eps": 1e-2}],
}  # fmt: skip
CASES = [
    pytest.param(name, own, id=f"{name}-{index}")
    for name, cases in OPTIONS.items()
    for index, own in enumerate(cases)
]


def by_torch(name, regression, lrs, **own):
    """The final parameters, and the optimiser."""
    params = tree.map_tensors(lambda x: x.clone().requires_grad_(), regression.params)
    optimizer = getattr(torch.optim, name)(tree.tensors(params), lr=lrs[0], **own)
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        regression.plain_loss(params, regression.data[:2]).backward()
        optimizer.step()
    return tree.map_tensors(torch.Tensor.detach, params), optimizer


def by_rule(name, regression, lrs, **own):
    rule = getattr(odeopt, name)(regression.plain_loss, **own)
    grid = odeopt.TimeGrid.from_lr(torch.tensor(lrs, device=regression.data[0].device))
    return odeopt.ODEOptimizer(rule).solve(regression.params, regression.data[:2], grid).params


def schedule(steps, lr):
    return [lr * (1 - k / (2 * steps)) for k in range(steps)]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("name", "own"), CASES)
def test_after_one_step_and_after_a_hundred(regression, name, own, maximize):
    lr = {"Adadelta": 0.5, "ASGD": 0.05, "Adagrad": 0.05}.get(name, 0.01)
    lr = lr / 10 if maximize else lr
    for steps, allowed in ((1, 1e-14), (2, 1e-13), (100, 1e-9)):
        lrs = schedule(steps, lr)
        expected, _ = by_torch(name, regression, lrs, maximize=maximize, **own)
        found = by_rule(name, regression, lrs, maximize=maximize, **own)
        assert relative_error(found, regression.params) > 1e-6
        assert relative_error(found, expected) < allowed


def test_the_case_of_no_rectification_is_where_it_is_meant_to_be(regression):
    """Beta2 above 2/3 is rectified after some steps, at 2/3 and below it never is."""
    rule = odeopt.RAdam(regression.plain_loss, betas=(0.5, 2 / 3))
    lrs = schedule(20, 0.01)
    plain = odeopt.RAdam(regression.plain_loss, betas=(0.5, 0.1), eps=7.0)
    grid = odeopt.TimeGrid.from_lr(torch.tensor(lrs, device=regression.data[0].device))
    ends = [
        odeopt.ODEOptimizer(each).solve(regression.params, regression.data[:2], grid).params
        for each in (rule, plain)
    ]
    assert relative_error(*ends) == 0
    assert relative_error(by_rule("RAdam", regression, lrs, betas=(0.5, 0.9)), ends[0]) > 1e-3


@pytest.mark.parametrize("t0", [0, 5, 50])
def test_the_average_of_asgd_is_that_which_torch_keeps(regression, t0):
    lrs, own = schedule(20, 0.05), {"lambd": 0.1, "t0": t0}
    params, optimizer = by_torch("ASGD", regression, lrs, **own)
    averages = [optimizer.state[p]["ax"] for p in optimizer.param_groups[0]["params"]]
    found = by_rule("ASGD", regression, lrs, averaged=True, **own)
    assert relative_error(tree.tensors(found), averages) < 1e-13
    assert (relative_error(found, params) < 1e-13) == (t0 == 50)


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD"])
def test_a_scale_of_the_rate_is_a_rate_so_many_times_as_large(regression, name):
    lrs = [0.01] * 10
    scaled = by_rule(name, regression, lrs, lr_scale=4.0)
    assert relative_error(scaled, by_rule(name, regression, [0.04] * 10)) < 1e-14


def test_an_accumulator_may_begin_elsewhere_in_each_group(regression):
    lrs = [0.1]
    found = by_rule("Adagrad", regression, lrs, initial_accumulator_value={"w": 0.3, "out": 0.0})
    for value, part in ((0.3, "w"), (0.0, "out")):
        own = by_rule("Adagrad", regression, lrs, initial_accumulator_value=value)
        assert relative_error(found[part], own[part]) == 0


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam"])
def test_a_number_below_the_root(regression, name):
    """By the formula, for torch has none; at the first step the mean is g and its square g²."""
    loss = lambda params, batch: (params * batch).sum()  # noqa: E731
    g = torch.tensor([0.5, -2.0, 0.0, 1e-3], device=regression.data[0].device)
    own = {"betas": (0.9, 0.9), "eps": 0.01, "eps_root": 0.04, "weight_decay": 0.0}
    rule = getattr(odeopt, name)(loss, **own)
    start, steps = torch.zeros_like(g), 9 if name == "RAdam" else 1
    end = odeopt.ODEOptimizer(rule).solve(start, g, odeopt.TimeGrid.from_lr(0.1, steps)).params
    if name == "RAdam":  # of an unchanging gradient the mean is g at every step
        most = 2 / 0.1 - 1
        expected = torch.zeros_like(g)
        for count in range(1, 10):
            bias = 1 - 0.9**count
            length = most - 2 * count * 0.9**count / bias
            factor = 1.0
            if length > 5:
                part = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
                root = (bias * (g.square() + 0.04)).sqrt()
                factor = (part * bias) ** 0.5 / (root + 0.01)
            expected = expected - 0.1 * g * factor
    else:
        now, after = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * count)) for count in (1, 2))
        ahead = g if name != "NAdam" else g + 0.1 * after * g / (1 - now * after)
        expected = -0.1 * ahead / ((g.square() + 0.04).sqrt() + 0.01)
    assert relative_error(end, expected) < 1e-13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: odeopt.Adagrad(len, -0.1), r"lr_decay is -0\.1; expected a number in"),
        (
            lambda: odeopt.Adagrad(len, initial_accumulator_value=-1.0),
            r"initial_accumulator_value is -1\.0",
        ),
        (
            lambda: odeopt.Adagrad(len, initial_accumulator_value=lambda hparams: hparams),
            "initial_accumulator_value is a selector",
        ),
        (lambda: odeopt.Adadelta(len, rho=1.0), r"rho is 1\.0; expected a number in \[0, 1\)"),
        (lambda: odeopt.Adamax(len, betas=(1.0, 0.9)), r"betas\[0\] is 1\.0"),
        (lambda: odeopt.NAdam(len, momentum_decay=-1), "momentum_decay is -1"),
        (lambda: odeopt.RAdam(len, eps_root=-1e-3), r"eps_root is -0\.001"),
        (lambda: odeopt.ASGD(len, lambd=-1.0), r"lambd is -1\.0"),
        (lambda: odeopt.Rprop(len, etas=(1.0, 1.2)), r"etas is \(1\.0, 1\.2\); expected a number"),
        (lambda: odeopt.Rprop(len, etas=(0.5, 1.0)), r"etas is \(0\.5, 1\.0\)"),
        (lambda: odeopt.Rprop(len, step_sizes=(-1.0, 1.0)), r"step_sizes\[0\] is -1\.0"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(odeopt.InputError, match=message):
        make()
