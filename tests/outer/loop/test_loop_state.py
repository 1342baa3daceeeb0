"""Going on where another loop, or torch, has ended; and what a recorded loop refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

import odeopt
from odeopt.testing import relative_error

OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "RMSprop": {"momentum": 0.5, "centered": True, "eps": 1e-3},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.05, "weight_decay": 0.1},
    "NAdam": {"momentum_decay": 0.1, "eps": 1e-4},
    "RAdam": {"betas": (0.8, 0.9), "eps": 1e-4},
    "Adamax": {"betas": (0.8, 0.9)},
    "Adadelta": {"eps": 1e-3},
    "ASGD": {"lambd": 0.1, "t0": 2},
    "Rprop": {"etas": (0.4, 1.3), "step_sizes": (1e-3, 0.2)},
}


def make(name, model):
    return getattr(torch.optim, name)(model.parameters(), lr=0.05, **OPTIMIZERS[name])


def train(problem, model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        problem.mse(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_optimizers_state_is_taken_over_and_written_back(problem, name):
    model, twin = copy.deepcopy(problem.model), copy.deepcopy(problem.model)
    optimizer, other = make(name, model), make(name, twin)
    train(problem, model, optimizer, problem.batches[:2])
    train(problem, twin, other, problem.batches)
    with odeopt.RecordedLoop(model, optimizer) as inner:
        for batch in problem.batches[2:4]:
            inner.step(problem.mse, batch)
    inner.write_back()
    with odeopt.RecordedLoop(model, optimizer) as inner:
        inner.step(problem.mse, problem.batches[4])
    inner.write_back()
    train(problem, model, optimizer, problem.batches[5:])
    assert relative_error(list(model.parameters()), list(twin.parameters())) < 1e-12
    for own, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert sorted(optimizer.state[own]) == sorted(other.state[theirs])
        for key, value in other.state[theirs].items():
            assert torch.allclose(optimizer.state[own][key], value, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_gradient_of_a_loop_that_goes_on(problem, name):
    model = copy.deepcopy(problem.model)
    optimizer = make(name, model)
    first, rest = problem.batches[:3], problem.batches[3:]
    names = [own for own, _ in model.named_parameters()]
    chosen = dict.fromkeys(names, (0.05, OPTIMIZERS[name]))
    _, _, slots = problem.unroll(model, name, [(problem.mse, (b,), chosen) for b in first])
    train(problem, model, optimizer, first)
    slots = {own: {k: x.detach() for k, x in slot.items()} for own, slot in slots.items()}
    values, _, _ = problem.unroll(
        model, name, [(problem.mse, (b,), chosen) for b in rest], offset=3, slots=slots
    )
    final = torch.func.functional_call(model, values, (problem.outer[0],))[..., 0]
    value = (final - problem.outer[1]).square().mean()
    expected = torch.autograd.grad(value, list(model.parameters()))
    with odeopt.RecordedLoop(model, optimizer, checkpoints=odeopt.Every(2)) as inner:
        for batch in rest:
            inner.step(problem.mse, batch)
    inner.backward(problem.mse, problem.outer)
    assert relative_error([p.grad for p in model.parameters()], list(expected)) < 1e-10


def test_parameters_that_were_moved_differently_are_refused(problem):
    optimizer = torch.optim.Adam(problem.model.parameters())
    problem.model[0](problem.outer[0]).sum().backward()
    optimizer.step()
    with pytest.raises(odeopt.InputError, match="different numbers of steps"):
        odeopt.RecordedLoop(problem.model, optimizer)


def test_a_loss_tensor_is_answered_with_the_rewrite(problem):
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with odeopt.RecordedLoop(problem.model, optimizer) as inner:
        loss = problem.mse(inner.model, problem.outer)
        with pytest.raises(odeopt.InputError, match=r"inner\.step\(lambda model, batch: "):
            inner.step(loss)
        with pytest.raises(odeopt.InputError, match="loss is 3; expected a function"):
            inner.step(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.LBFGS, "LBFGS evaluates the loss several times .* searches along a line"),
        (torch.optim.SparseAdam, "SparseAdam takes sparse gradients only"),
        (lambda p: torch.optim.Muon(p[::2]), r"Muon looks at .* odeopt\.register_optimizer"),
        (torch.optim.Adafactor, "Adafactor looks at each matrix as a whole"),
        (lambda p: torch.optim.RMSprop(p, differentiable=True), "differentiable=True"),
        (
            type("Own", (torch.optim.SGD,), {}),
            r"Own is not translated; these are: SGD, .* odeopt\.register_optimizer",
        ),
        (
            lambda p: torch.optim.Adam([{"params": p[:1], "amsgrad": True}, {"params": p[1:]}]),
            "the groups differ in amsgrad",
        ),
        (lambda p: torch.optim.SGD([nn.Parameter(torch.ones(1))]), "no parameter of the module"),
        (lambda p: "adam", "expected a torch.optim.Optimizer"),
    ],
)
def test_unsupported_optimizers_are_refused_by_name(problem, make, message):
    with pytest.raises(odeopt.OdeoptError, match=message):
        odeopt.RecordedLoop(problem.model, make(list(problem.model.parameters())))


def test_implementations_that_do_not_change_the_numbers_are_fine(problem):
    found = []
    for own in ({"foreach": True}, {"foreach": False}, {"capturable": True}, {"fused": True}):
        optimizer = torch.optim.AdamW(problem.model.parameters(), **own)
        problem.model.zero_grad()
        with odeopt.RecordedLoop(problem.model, optimizer) as inner:
            inner.step(problem.mse, problem.outer)
        inner.backward(problem.mse, problem.outer)
        found.append([p.grad.clone() for p in problem.model.parameters()])
    assert found[0][0].any()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def own_step(problem, optimizer):
    problem.mse(problem.model, problem.outer).backward()
    optimizer.step()


def other_data(problem, optimizer):
    problem.model[0].weight.data = 2 * problem.model[0].weight.data


MISUSES = {
    "optimizer.step": own_step,
    "eval": lambda problem, optimizer: problem.model.eval(),
    "group": lambda problem, optimizer: optimizer.add_param_group(
        {"params": [nn.Parameter(torch.ones(1))]}
    ),
    "momentum": lambda problem, optimizer: optimizer.param_groups[0].update(momentum=0.5),
    "dtype": lambda problem, optimizer: problem.model.float(),
    "data": other_data,
    "buffer": lambda problem, optimizer: problem.model.scale.fill_(2.0),
    "frozen": lambda problem, optimizer: problem.model[0].requires_grad_(False),
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optimizer.step", "takes the place of optimizer.step"),
        ("eval", r"between train\(\) and eval\(\)"),
        ("group", "had 1 groups and has 2 now"),
        ("momentum", r"momentum of group 0 was 0\.9 and is 0\.5 now"),
        ("dtype", "parameters were changed since the loop began"),
        ("data", "parameters were changed since the loop began"),
        ("buffer", r"buffers were changed .*in the batch"),
        ("frozen", "requires_grad of a parameter was changed"),
    ],
)
def test_changes_behind_its_back_are_noticed(problem, name, message):
    problem.model.register_buffer("scale", torch.ones(()))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    with odeopt.RecordedLoop(problem.model, optimizer) as inner:
        inner.step(problem.mse, problem.batches[0])
        MISUSES[name](problem, optimizer)
        with pytest.raises(odeopt.InputError, match=message):
            inner.step(problem.mse, problem.batches[1])
        assert inner.steps == 1


@pytest.mark.parametrize("way", [copy.deepcopy, pickle.dumps])
def test_a_loop_belongs_to_its_module(problem, way):
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        inner.step(problem.mse, problem.batches[0])
    parts = odeopt.from_module(problem.model, problem.mse)
    for found in (inner, parts):
        with pytest.raises(odeopt.InputError, match=r"neither copied nor pickled.*inner\.model"):
            way(found)


def test_steps_after_the_block_are_refused(problem):
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        pass
    with pytest.raises(odeopt.InputError, match="inside the with block"):
        inner.step(problem.mse, problem.batches[0])


def test_captured_tensors_are_refused_in_every_step(problem, device):
    eta = torch.ones((), device=device, requires_grad=True)
    x, y, _ = problem.batches[1]
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        inner.step(problem.mse, problem.batches[0])
        with pytest.raises(odeopt.CapturedTensorError, match="is not one of its arguments"):
            inner.step(lambda model, batch: eta * problem.mse(model, batch), (x, y))
        with pytest.raises(odeopt.CapturedTensorError, match="computed from others"):
            inner.step(problem.mse, (eta * x, y))
        inner.step(problem.mse, (x, y))
    with pytest.raises(odeopt.CapturedTensorError, match="outer_batch holds a tensor"):
        inner.backward(problem.mse, (eta * x, y))


def test_a_batch_that_was_changed_is_noticed(problem):
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
    problem.batches[3][0].mul_(2)
    with pytest.raises(odeopt.NondeterminismError, match="changed in place"):
        inner.backward(problem.mse, problem.outer)


def test_autocast_is_refused(problem, device):
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        with (
            torch.autocast(device.type, dtype=torch.bfloat16),
            pytest.raises(odeopt.InputError, match="autocast"),
        ):
            inner.step(problem.mse, problem.batches[0])
        inner.step(problem.mse, problem.batches[0])


def test_a_module_may_be_used_by_its_parts_and_batches_may_differ(problem):
    with odeopt.RecordedLoop(problem.model, torch.optim.SGD(problem.model.parameters())) as inner:
        inner.step(lambda model, batch: model[0](batch).square().mean(), problem.outer[0])
        inner.step(lambda model, batch: model[2].weight.square().sum(), None)
        inner.step(problem.mse, tuple(leaf[:2] for leaf in problem.batches[0]))
    assert inner.backward(problem.mse, problem.outer).stats.steps == 3


def test_no_step_at_all(problem):
    with odeopt.RecordedLoop(problem.model, torch.optim.Adam(problem.model.parameters())) as inner:
        pass
    res = inner.value_and_grad(problem.mse, problem.outer)
    value = problem.mse(problem.model, problem.outer)
    expected = torch.autograd.grad(value, list(problem.model.parameters()))
    assert relative_error(list(res.grads.params.values()), list(expected)) < 1e-12
    assert res.grads.lr.shape == (0, 1)


def test_clipping(problem):
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    twin = copy.deepcopy(problem.model)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    clip = odeopt.clip_by_norm(0.1)
    with odeopt.RecordedLoop(problem.model, optimizer, gradient_transform=clip) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
            other.zero_grad()
            problem.mse(twin, batch).backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            other.step()
    assert relative_error(list(inner.model.parameters()), list(twin.parameters())) < 1e-12


def test_schedulers_do_not_miss_the_optimizers_step(problem):
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with odeopt.RecordedLoop(problem.model, optimizer) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
            schedule.step()  # warns, which is an error here, if it believes no step was made
    assert inner.value_and_grad(problem.mse, problem.outer).value.isfinite()
