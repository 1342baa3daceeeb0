"""What batch a stream gives to which step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt


@given(examples=st.integers(1, 30), seed=st.integers(0, 10**6), data=st.data())
def test_an_epoch_holds_each_example_once(examples, seed, data):
    size = data.draw(st.integers(1, examples))
    stream = odeopt.Stream.minibatches(torch.arange(examples), size, seed)
    per_epoch = examples // size
    for epoch in (0, 3):
        drawn = torch.cat([stream(epoch * per_epoch + k) for k in range(per_epoch)])
        assert drawn.shape == (per_epoch * size,)
        assert len(set(drawn.tolist())) == per_epoch * size


@given(k=st.integers(0, 200), seed=st.integers(0, 10**6))
def test_a_batch_depends_on_the_step_and_the_seed_alone(k, seed):
    first, again = (odeopt.Stream.minibatches(torch.arange(12), 5, seed) for _ in range(2))
    first(k + 7)
    assert torch.equal(first(k), again(k))


def test_epochs_and_seeds_have_orders_of_their_own():
    data = torch.arange(50)
    stream, other = (odeopt.Stream.minibatches(data, 50, seed) for seed in (0, 1))
    assert not torch.equal(stream(0), stream(1))
    assert not torch.equal(stream(0), other(0))
    assert torch.equal(odeopt.Stream.minibatches(data, 50, 0, shuffle=False)(3), data)


def test_stacked_batches_are_taken_one_after_the_other():
    stream = odeopt.Stream.stacked({"x": torch.arange(6).reshape(3, 2), "y": torch.arange(3)})
    assert stream(2)["x"].tolist() == [4, 5]
    assert stream.length == 3


def test_a_dataset_gives_what_a_data_loader_would():
    items = [(torch.tensor([float(i)]), i) for i in range(10)]
    stream = odeopt.Stream.from_dataset(items, 4, seed=2)
    x, index = stream(1)
    assert x.shape == (4, 1)
    assert torch.equal(x[:, 0].long(), index)
    joined = odeopt.Stream.from_dataset(items, 4, seed=2, collate=len)
    assert joined(0) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: odeopt.Stream(3), "expected a function of the step's index"),
        (lambda: odeopt.Stream(len, seed=-1), "seed is -1"),
        (lambda: odeopt.Stream.minibatches(torch.arange(3), 4, 0), "expected 1 to 3"),
        (lambda: odeopt.Stream.minibatches(torch.arange(3), 1.5, 0), "batch_size is 1.5"),
        (lambda: odeopt.Stream.minibatches((torch.ones(3), torch.ones(2)), 1, 0), "one leading"),
        (lambda: odeopt.Stream.stacked(torch.ones(())), "one leading dimension"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(odeopt.InputError, match=message):
        make()
