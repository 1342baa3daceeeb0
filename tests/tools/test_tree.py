"""Pytrees: flattening, cutting, splitting and putting together again."""

from __future__ import annotations

import pickle
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import InputError
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently

Pair = namedtuple("Pair", ["left", "right"])


def _tensor(shape):
    numel = int(torch.Size(shape).numel())
    return torch.linspace(-1.0, 2.0, numel, dtype=torch.float64).reshape(shape)


def _containers(children):
    few = st.lists(children, min_size=1, max_size=3)
    keys = st.text("abcd", min_size=1, max_size=2)
    return st.one_of(
        few,
        few.map(tuple),
        st.dictionaries(keys, children, min_size=1, max_size=3),
        st.tuples(children, children).map(lambda two: Pair(*two)),
    )


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
TREES = st.recursive(SHAPES.map(_tensor), _containers, max_leaves=6)


def _to(found, device):
    return tree.map_tensors(lambda leaf: leaf.to(device), found)


def assert_same(first, second):
    assert tree.structure(first) == tree.structure(second)
    for x, y in zip(tree.leaves(first), tree.leaves(second), strict=True):
        assert x.shape == y.shape
        assert torch.equal(x, y)


@given(found=TREES)
def test_a_reader_takes_the_leaves_in_their_order(found):
    read = tree.reader(tree.structure(found))(found)
    assert all(x is y for x, y in zip(read, pytree.tree_leaves(found), strict=True))


class Box(UserDict):
    """A node that somebody else has registered."""


pytree.register_pytree_node(
    Box,
    lambda box: (list(box.values()), list(box)),
    lambda values, keys: Box(zip(keys, values, strict=True)),
)
OTHERS = st.sampled_from([None, 1, "text", 2.5])
MIXED = st.recursive(
    st.one_of(SHAPES.map(_tensor), OTHERS),
    lambda children: st.one_of(
        _containers(children),
        st.lists(children, max_size=2).map(lambda parts: Box(enumerate(parts))),
        st.lists(children, max_size=2).map(lambda parts: OrderedDict(enumerate(parts))),
        st.just(()),
    ),
    max_leaves=6,
)


@given(found=MIXED)
def test_leaves_are_those_of_torch_in_its_order(found):
    expected = pytree.tree_leaves(found)
    assert all(x is y for x, y in zip(tree.leaves(found), expected, strict=True))


@given(found=MIXED)
def test_an_assembler_makes_the_tree_again(found):
    leaves, spec = pytree.tree_flatten(found)
    again = tree.assembler(spec)(iter(leaves))
    assert pytree.tree_structure(again) == spec
    assert type(again) is type(found)
    assert all(x is y for x, y in zip(pytree.tree_leaves(again), leaves, strict=True))


@given(found=TREES, other=TREES)
def test_a_reader_refuses_trees_of_another_structure(found, other):
    same = tree.structure(found) == tree.structure(other)
    read = tree.reader(tree.structure(found))(other)
    assert read is None or same


@pytest.mark.parametrize("other", [(1.0, 2.0), ((), ()), {"x": 1}, None])
def test_a_reader_refuses_leaves_that_are_no_tensors(other):
    pair = (torch.zeros(2), torch.zeros(2))
    assert tree.reader(tree.structure(pair))(other) is None


@given(found=TREES)
def test_unflatten_undoes_ravel(device, found):
    found = _to(found, device)
    flat, layout = tree.ravel(found, "params")
    assert flat.shape == (layout.size,)
    assert_same(layout.unflatten(flat), found)


@given(found=TREES)
def test_flatten_agrees_with_ravel_and_undoes_unflatten(device, found):
    flat, layout = tree.ravel(_to(found, device), "params")
    again = layout.flatten(layout.unflatten(flat.flip(0)), "state")
    assert torch.equal(again, flat.flip(0))


@given(found=TREES, lead=st.lists(st.integers(1, 3), max_size=2))
def test_unflatten_keeps_leading_dimensions(device, found, lead):
    _, layout = tree.ravel(_to(found, device), "params")
    flat = torch.randn(*lead, layout.size, device=device)
    cut = layout.unflatten(flat)
    for leaf, shape in zip(tree.leaves(cut), layout.shapes, strict=True):
        assert leaf.shape == (*lead, *shape)
    pieces = [leaf.reshape(*lead, shape.numel()) for leaf, shape in
              zip(tree.leaves(cut), layout.shapes, strict=True)]  # fmt: skip
    assert torch.equal(torch.cat(pieces, dim=-1), flat)


@given(found=TREES)
def test_ravel_is_differentiable(device, found):
    found = tree.map_tensors(lambda x: x.clone().requires_grad_(), _to(found, device))
    flat, _ = tree.ravel(found, "params")
    weights = torch.randn_like(flat)
    gradients = torch.autograd.grad(flat @ weights, tree.leaves(found))
    assert torch.equal(torch.cat([g.reshape(-1) for g in gradients]), weights)


def test_flatten_runs_under_vmap(device):
    _, layout = tree.ravel({"a": torch.zeros(2, device=device)}, "params")
    many = {"a": torch.randn(4, 2, device=device)}
    assert torch.equal(torch.func.vmap(lambda x: layout.flatten(x, "state"))(many), many["a"])


@pytest.mark.parametrize("other", [
    {"b": torch.zeros(2)}, [torch.zeros(2)], torch.zeros(2), {"a": torch.zeros(3)},
    {"a": torch.zeros(2, 1)}, {"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": 1.0},
])  # fmt: skip
def test_flatten_refuses_another_structure_or_shape(device, other):
    _, layout = tree.ravel({"a": torch.zeros(2, device=device)}, "params")
    with pytest.raises(InputError, match=r"(?s)the velocity has the structure .*expected .*\(2,\)"):
        layout.flatten(_to(other, device), "the velocity")


@pytest.mark.parametrize("empty", [{}, [], (), {"a": {}, "b": []}])
def test_ravel_refuses_a_tree_without_leaves(empty):
    with pytest.raises(InputError, match="params holds no tensor: pass at least one"):
        tree.ravel(empty, "params")


@pytest.mark.parametrize("leaf", [1.0, 3, "text", None])
def test_ravel_names_a_leaf_that_is_no_tensor(leaf):
    with pytest.raises(InputError, match=rf"params\['w'\] is a {type(leaf).__name__}; expected"):
        tree.ravel({"w": leaf}, "params")


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.complex128]
)
def test_ravel_names_the_dtype_it_refuses(device, dtype):
    with pytest.raises(InputError, match=rf"params\['w'\] has dtype {dtype}; expected .*float32"):
        tree.ravel({"w": torch.zeros(2, dtype=dtype, device=device)}, "params")


def test_ravel_refuses_mixed_dtypes(device):
    mixed = {
        "a": torch.zeros(2, device=device),
        "b": torch.zeros(2, dtype=torch.float32, device=device),
    }
    with pytest.raises(InputError, match=r"params\['b'\] is torch.float32 .* use one dtype"):
        tree.ravel(mixed, "params")


def test_ravel_refuses_mixed_devices(device):
    mixed = {"a": torch.zeros(2, device=device), "b": torch.zeros(2, device="meta")}
    with pytest.raises(InputError, match=r"params\['b'\] is .*meta.* one device"):
        tree.ravel(mixed, "params")


def test_ravel_keeps_float32(device):
    flat, _ = tree.ravel([torch.ones(2, dtype=torch.float32, device=device)], "params")
    assert flat.dtype is torch.float32


def test_paths_are_readable():
    assert tree.paths({"layer": {"weight": 1}, "other": [2, 3]}) == [
        "['layer']['weight']",
        "['other'][0]",
        "['other'][1]",
    ]
    assert tree.paths(1.0) == ["<root>"]


def test_map_tensors_leaves_other_leaves_alone(device):
    found = tree.map_tensors(torch.neg, {"x": torch.ones(1, device=device), "n": 3, "s": "text"})
    assert found["x"].item() == -1
    assert (found["n"], found["s"]) == (3, "text")


def test_tensors_skips_other_leaves(device):
    x = torch.ones(1, device=device)
    assert tree.tensors([1, x, "a", None]) == [x]


@pytest.mark.parametrize(("leaf", "expected"), [
    (torch.zeros(1), True), (torch.zeros(1, dtype=torch.int64), False),
    (torch.zeros(1, dtype=torch.complex64), False), (1.0, False), (None, False),
])  # fmt: skip
def test_only_floating_point_tensors_are_differentiable(leaf, expected):
    assert tree.is_differentiable(leaf) is expected


def test_partition_splits_by_role_and_merges_again(device):
    x, labels = torch.ones(2, device=device), torch.arange(3, device=device)
    layout, diff, data = tree.partition({"x": x, "y": labels, "name": "a", "n": [None, 2]})
    assert diff == (x,)
    assert data == (labels,)
    merged = layout.merge((2 * x,), (labels,))
    assert torch.equal(merged["x"], 2 * x)
    assert merged["y"] is labels
    assert (merged["name"], merged["n"]) == ("a", [None, 2])


@given(found=TREES, mask=st.integers(0, 63))
def test_partition_round_trip_with_any_choice(device, found, mask):
    found = _to(found, device)
    chosen = {id(leaf) for i, leaf in enumerate(tree.leaves(found)) if mask >> i & 1}
    layout, diff, data = tree.partition(found, lambda leaf: id(leaf) in chosen)
    assert len(diff) + len(data) == len(tree.leaves(found))
    assert_same(layout.merge(diff, data), found)


def test_partition_gradients_are_none_for_other_leaves(device):
    x = torch.ones(2, device=device)
    layout, _, _ = tree.partition({"x": x, "y": torch.arange(3, device=device), "n": 1})
    gradients = layout.gradients([5 * x])
    assert torch.equal(gradients["x"], 5 * x)
    assert gradients["y"] is None
    assert gradients["n"] is None


@given(found=TREES)
def test_an_assembler_makes_trees_of_its_kind(found):
    leaves, spec = tree.pytree.tree_flatten(found)
    make = tree.assembler(spec)
    for _ in range(2):  # it may be used again
        rest = iter([*leaves, "the next"])
        assert_same(make(rest), found)
        assert next(rest) == "the next"


class Nameless:
    """A node that does not name its children."""

    def __init__(self, first, second):
        self.first, self.second = first, second


tree.pytree.register_pytree_node(
    Nameless, lambda node: ([node.first, node.second], None), lambda found, _: Nameless(*found)
)


def test_leaves_of_nodes_without_names_go_by_their_place(device):
    x = torch.ones(2, device=device)
    assert tree.paths({"a": Nameless(x, [x, x])}) == ["[0]", "[1]", "[2]"]
    with pytest.raises(odeopt.InputError, match=r"params\[1\] has dtype torch.int64"):
        tree.ravel(Nameless(x, x.long()), "params")


def test_parameters_in_nodes_without_names_are_moved(device):
    def loss(params, batch):
        return (params.first - batch).square().sum() + params.second.square().sum()

    x = torch.ones(2, device=device)
    call = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)).value_and_grad(loss)
    res = call(Nameless(0 * x, x), x, odeopt.TimeGrid.from_lr(0.1, 3), x)
    assert isinstance(res.grads.params, Nameless)
    torch.testing.assert_close(res.grads.params.second, 2 * 0.8**6 * x)


@pytest.mark.parametrize("empty", [{}, [], (), OrderedDict(), Box()])
def test_empty_containers_are_made_anew(empty):
    leaves, spec = pytree.tree_flatten({"x": torch.zeros(2), "memo": empty})
    assemble = tree.assembler(spec)
    first, second = (assemble(iter(leaves))["memo"] for _ in range(2))
    assert type(first) is type(empty)
    assert len(first) == 0
    assert first is not second or isinstance(empty, tuple)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch warns as it unpickles one
def test_layouts_are_what_they_were_after_they_have_been_used():
    made = {"x": torch.zeros(2), "n": 3}
    flat, layout = tree.ravel({"x": made["x"]}, "params")
    partition, diff, data = tree.partition(made)
    before = [describe_leniently(value) for value in (layout, partition)]
    layout.flatten(layout.unflatten(flat), "params")
    partition.merge(diff, data)
    assert [describe_leniently(value) for value in (layout, partition)] == before
    for value in (layout, partition):
        assert pickle.loads(pickle.dumps(value)) == value
    assert_same(pickle.loads(pickle.dumps(layout)).unflatten(flat), layout.unflatten(flat))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4)])
def test_zero_unless_drops_whole_tasks_even_where_they_are_nan(device, shape):
    leaf = torch.arange(1.0, torch.Size(shape).numel() + 1, device=device).reshape(shape)
    ok = torch.tensor([True, False, True], device=device)
    expected = leaf.clone()
    expected[1] = 0
    leaf[1] = torch.nan
    assert torch.equal(tree.zero_unless(ok, leaf), expected)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_zero_unless_without_tasks_keeps_the_shape(device, shape):
    leaf = torch.ones(shape, device=device)
    for ok in (True, False):
        found = tree.zero_unless(torch.tensor(ok, device=device), leaf)
        assert torch.equal(found, leaf if ok else torch.zeros_like(leaf))


def test_a_norm_is_that_of_all_tensors_together(device):
    found = {"x": torch.tensor([[3.0, 0.0]], device=device), "n": 7, "y": torch.tensor(4.0)}
    assert tree.norm(found) == pytest.approx(5.0)
    assert tree.norm({"n": 7}) == 0.0


def test_a_tree_is_split_as_it_was_partitioned():
    made = {"x": torch.zeros(2), "n": torch.tensor(3), "name": "a", "y": [torch.ones(1)]}
    partition, diff, data = tree.partition(made)
    other = tree.map_tensors(lambda leaf: leaf + 1, made)
    found = partition.split(other)
    assert [
        torch.equal(a, b + 1) for a, b in zip(found[0] + found[1], diff + data, strict=True)
    ] == [True] * 3
    assert str(partition.merge(*found)) == str(other)
