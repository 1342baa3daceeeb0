"""Update rules are torch.optim's after 100 steps."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import odeopt
from odeopt.testing import relative_error

RATES = st.floats(1e-4, 0.1)
DECAYS = st.sampled_from([0.0, 0.01, 0.3])
MOMENTA = st.sampled_from([0.0, 0.5, 0.9])
BETAS = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.9, 0.999]))

CHAOTIC = 1e-11
"""Where a nudge moves a result by more than this, two ways to the same numbers need not agree."""


def by_torch(make, regression, lrs):
    params, batch = regression.params, regression.data[:2]
    leaves = [params["w"], params["out"]["v"], params["out"]["b"]]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    tree = {"w": leaves[0], "out": {"v": leaves[1], "b": leaves[2]}}
    optimizer = make(leaves, lrs[0])
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        regression.plain_loss(tree, batch).backward()
        optimizer.step()
    return tree


def by_rule(rule, regression, lrs):
    params, batch = regression.params, regression.data[:2]
    return odeopt.ODEOptimizer(rule).solve(params, batch, odeopt.TimeGrid.from_lr(lrs)).params


def rounding(make, regression, lrs, expected):
    """How far torch's own result moves when the parameters move by a few units in the last place.

    With little momentum and long steps Adam is chaotic: rounding grows a million times.
    """
    nudged = odeopt.tools.tree.map_tensors(lambda leaf: leaf * (1 + 2**-51), regression.params)
    return relative_error(by_torch(make, regression._replace(params=nudged), lrs), expected)


def schedule(lr, steps=100):
    return (lr * (1 - torch.arange(steps) / (2 * steps))).tolist()


@given(
    lr=RATES,
    momentum=MOMENTA,
    decay=DECAYS,
    nesterov=st.booleans(),
    damp=st.sampled_from([0.0, 0.4]),
)
def test_sgd_bit_for_bit(regression, lr, momentum, decay, nesterov, damp):
    nesterov = nesterov and momentum > 0
    damp = 0.0 if nesterov else damp
    own = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov, "dampening": damp}
    lrs = schedule(lr)
    expected = by_torch(lambda leaves, rate: torch.optim.SGD(leaves, rate, **own), regression, lrs)
    found = by_rule(odeopt.SGD(regression.plain_loss, **own), regression, torch.tensor(lrs))
    assert torch.equal(found["w"], expected["w"])
    assert torch.equal(found["out"]["v"], expected["out"]["v"])
    assert torch.equal(found["out"]["b"], expected["out"]["b"])


@example(lr=0.0625, betas=(0.5, 0.5), decay=0.0, amsgrad=False, decoupled=False)  # chaotic
@example(lr=0.044921875, betas=(0.5, 0.5), decay=0.01, amsgrad=False, decoupled=False)  # chaotic
@given(lr=RATES, betas=BETAS, decay=DECAYS, amsgrad=st.booleans(), decoupled=st.booleans())
def test_adam_and_adamw(regression, lr, betas, decay, amsgrad, decoupled):
    own = {"betas": betas, "weight_decay": decay, "amsgrad": amsgrad, "eps": 1e-6}
    theirs = torch.optim.AdamW if decoupled else torch.optim.Adam
    ours = odeopt.AdamW if decoupled else odeopt.Adam
    lrs = schedule(lr)

    def make(leaves, rate):
        return theirs(leaves, rate, **own)

    rule = ours(regression.plain_loss, **own)
    for steps in (10, 100):
        expected = by_torch(make, regression, lrs[:steps])
        moved = rounding(make, regression, lrs[:steps], expected)
        if steps == 100 and moved > CHAOTIC:
            return  # of so many steps rounding, which each of them adds to, decides
        found = by_rule(rule, regression, torch.tensor(lrs[:steps]))
        assert relative_error(found, expected) < max(1e-13, 10 * moved)


def test_one_step_of_adam_needs_no_such_allowance(regression):
    for lr in (1e-3, 0.0625):
        expected = by_torch(
            lambda leaves, rate: torch.optim.Adam(leaves, rate, betas=(0.5, 0.5)), regression, [lr]
        )
        rule = odeopt.Adam(regression.plain_loss, betas=(0.5, 0.5))
        assert relative_error(by_rule(rule, regression, torch.tensor([lr])), expected) < 1e-15


@given(
    lr=st.floats(1e-4, 0.01), smoothing=st.sampled_from([0.5, 0.9, 0.99]), decay=DECAYS,
    momentum=MOMENTA, centered=st.booleans(),
)  # fmt: skip
def test_rmsprop(regression, lr, smoothing, decay, momentum, centered):
    shared = {"weight_decay": decay, "momentum": momentum, "centered": centered, "eps": 1e-3}
    lrs = schedule(lr)
    expected = by_torch(
        lambda leaves, rate: torch.optim.RMSprop(leaves, rate, alpha=smoothing, **shared),
        regression, lrs,
    )  # fmt: skip
    rule = odeopt.RMSprop(regression.plain_loss, smoothing=smoothing, **shared)
    found = by_rule(rule, regression, torch.tensor(lrs))
    assert relative_error(found, expected) < 1e-13


def test_clipping_is_that_of_torch(regression):
    lrs = schedule(0.1)

    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.2)
            return super().step(closure)

    expected = by_torch(Clipped, regression, lrs)
    rule = odeopt.SGD(regression.plain_loss, gradient_transform=odeopt.clip_by_norm(0.2))
    found = by_rule(rule, regression, torch.tensor(lrs))
    assert relative_error(found, expected) < 1e-13


def test_groups_have_settings_of_their_own(regression):
    params = regression.params
    leaves = [params["w"], params["out"]["v"], params["out"]["b"]]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    tree = {"w": leaves[0], "out": {"v": leaves[1], "b": leaves[2]}}
    optimizer = torch.optim.Adam(
        [{"params": leaves[:1], "lr": 0.02, "weight_decay": 0.1}, {"params": leaves[1:]}], lr=0.01
    )
    batch = regression.data[:2]
    for _ in range(50):
        optimizer.zero_grad()
        regression.plain_loss(tree, batch).backward()
        optimizer.step()
    rule = odeopt.Adam(
        regression.plain_loss,
        weight_decay={"w": 0.1, "out": 0.0},
        lr_scale={"w": 2.0, "out": {"v": 1.0, "b": 1}},
    )
    found = by_rule(rule, regression, torch.full((50,), 0.01))
    assert relative_error(found, tree) < 1e-13


@pytest.mark.parametrize(
    "make",
    [
        lambda loss, **own: odeopt.SGD(loss, momentum=0.9, **own),
        odeopt.Adam,
        lambda loss, **own: odeopt.AdamW(loss, weight_decay=0.1, **own),
        odeopt.RMSprop,
        lambda loss, **own: odeopt.RMSprop(loss, centered=True, momentum=0.5, **own),
    ],
)
def test_a_scale_of_the_rate_is_a_rate_so_many_times_as_large(regression, make):
    """With a scale of a power of two, to the last bit."""
    loss, lrs = regression.plain_loss, torch.full((20,), 0.01)
    scaled = by_rule(make(loss, lr_scale=4.0), regression, lrs)
    own = by_rule(make(loss), regression, 4 * lrs)
    assert all(map(torch.equal, odeopt.tools.tree.tensors(scaled), odeopt.tools.tree.tensors(own)))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_options_follow_params_that_are_a_list(count):
    rule = odeopt.SGD(
        lambda params, batch: params[0].sum() + params[1].sum(), lr_scale=[2.0] * count
    )
    params = [torch.ones(2), torch.ones(3)]
    grid = odeopt.TimeGrid.from_lr(0.1, 1)
    if count == 2:
        found = odeopt.ODEOptimizer(rule).solve(params, (), grid).params
        assert all(torch.equal(leaf, torch.full_like(leaf, 0.8)) for leaf in found)
        return
    with pytest.raises(odeopt.InputError, match=f"lr_scale has the parts {count} entries"):
        odeopt.ODEOptimizer(rule).solve(params, (), grid)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: odeopt.SGD(len, nesterov=True), "needs a momentum"),
        (lambda: odeopt.SGD(len, momentum=-0.1), r"momentum is -0\.1; expected a number in"),
        (lambda: odeopt.Adam(len, weight_decay={"w": 0.1, "b": -0.1}), r"weight_decay is -0\.1"),
        (lambda: odeopt.Adam(len, betas=(0.9, 1.0)), r"betas\[1\] is 1\.0"),
        (lambda: odeopt.Adam(len, micro_batches=0), "micro_batches"),
        (lambda: odeopt.Adam(3), "loss is 3"),
        (lambda: odeopt.clip_by_norm(0.0), r"max_norm is 0\.0"),
        (lambda: odeopt.RMSprop(len, eps="small"), "eps is 'small'"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(odeopt.InputError, match=message):
        make()


def test_an_option_that_requires_grad_is_refused():
    decay = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(odeopt.CapturedTensorError, match="weight_decay"):
        odeopt.Adam(len, weight_decay=decay)


def test_options_that_do_not_follow_the_params_are_refused(regression):
    grid = odeopt.TimeGrid.from_lr(0.1, 2)
    for decay, message in (
        ({"other": 0.1}, r"weight_decay has the parts \['other'\]"),
        (lambda hparams: hparams["weights"], r"weight_decay has shape \(20,\) for a parameter"),
    ):
        rule = odeopt.SGD(lambda p, b, h=None: regression.plain_loss(p, b), weight_decay=decay)
        with pytest.raises(odeopt.InputError, match=message):
            odeopt.ODEOptimizer(rule).solve(
                regression.params, regression.data[:2], grid, regression.hparams
            )


@pytest.mark.parametrize(
    "adjoint",
    [odeopt.ContinuousAdjoint(odeopt.RK4()), odeopt.BacksolveAdjoint(), odeopt.ImplicitAdjoint()],
)
def test_adjoints_of_flows_are_refused(adjoint):
    with pytest.raises(odeopt.CompatibilityError, match="is an update rule, which has no velocity"):
        odeopt.ODEOptimizer(odeopt.Adam(len), adjoint=adjoint)


@pytest.mark.parametrize("solver", [odeopt.Euler(), odeopt.RK4(), odeopt.Adaptive(1e-3, 1e-6)])
def test_solvers_are_refused(solver):
    with pytest.raises(odeopt.CompatibilityError, match="brings its own steps"):
        odeopt.ODEOptimizer(odeopt.SGD(len), solver)


def test_power_iterations_are_refused():
    with pytest.raises(odeopt.CompatibilityError, match="power_iterations"):
        odeopt.ODEOptimizer(odeopt.SGD(len), safety=odeopt.Safety(power_iterations=3))
