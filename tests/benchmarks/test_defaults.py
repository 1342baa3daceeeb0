"""The benchmark `defaults`: its contenders, the arithmetic of its claims, and its report."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from benchmarks import __main__ as cli
from benchmarks import defaults
from benchmarks.defaults import CONTENDERS, HIGHER, LOOP, MODELS, RULE, RULES, TORCHOPT, UNROLLED
from benchmarks.harness import processes, strict_json
from odeopt.testing import relative_error

PARAMETERS = {
    "perceptron-1e3": 979, "perceptron-1e4": 9955, "perceptron-1e5": 99610,
    "conv-batch-norm": 8 * 9 + 16 + 16 * 72 + 32 + 650, "encoder": 32 + 4 * 16**2 + 2 * 1024 + 1290,
}  # fmt: skip
"""The encoder has scales of two normalisations, four square matrices and a perceptron."""


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", [name for name in MODELS if name != "perceptron-1e5"])
def test_all_give_the_gradient_of_unrolled_autograd_each_time(model, rule, device):
    pytest.importorskip("higher")
    pytest.importorskip("torchopt")
    point = defaults.Point(model, rule, 2)
    for name, make in CONTENDERS.items():
        network, task, _ = point.problem(device, torch.float64)
        before = [own.clone() for own in network.state_dict().values()]
        with sdpa_kernel(SDPBackend.MATH):
            given = point.problem(device, torch.float64)
            expected = defaults.unrolled(*given, early_eps=name == HIGHER)()
            run = make(network, task, point)
            for _ in range(2):  # a second run starts anew
                error = relative_error(run(), expected)
                assert error < (1e-4 if name == TORCHOPT else 1e-9)
        assert network.training
        for own, was in zip(network.state_dict().values(), before, strict=True):
            assert torch.equal(own, was)


@pytest.mark.parametrize("model", MODELS)
def test_models_are_as_large_as_they_say(model):
    network, task, _ = defaults.Point(model, "SGD", 1).problem(torch.device("cpu"), torch.float32)
    assert sum(own.numel() for own in network.parameters()) == PARAMETERS[model]
    assert network(task.train.x).shape == (50, 10)
    assert len(task.train.y.unique()) > 5


def cell(loop, higher=(1.0, 1.0, 1.0), torchopt=(2.0, 2.0, 2.0), size=100, others=None):
    """One in which the rule takes half as long as the loop, and unrolled autograd as long as it."""
    seconds = {LOOP: loop, RULE: [own / 2 for own in loop], UNROLLED: loop,
               HIGHER: higher, TORCHOPT: torchopt}  # fmt: skip
    sizes = {LOOP: size, RULE: 100, UNROLLED: 100, HIGHER: 120, TORCHOPT: 100}
    return {
        "contenders": {
            name: {"outcome": "", "seconds": own, "live_bytes": [sizes[name]]}
            | (others or {}).get(name, {})
            for name, own in seconds.items()
        }
    }


def verdicts(cells):
    return [one.met for one in defaults.evaluate(cells)]


def test_a_ratio_is_to_the_faster_of_the_two_in_the_same_round():
    found = cell([3.0, 8.0, 4.0], higher=[1.0, 4.0, 9.0], torchopt=[3.0, 9.0, 1.0])
    assert defaults.ratio(found, LOOP, "seconds") == 3.0  # of 3, 2 and 4
    assert defaults.ratio(found, LOOP, "live_bytes") == 1.0
    alone = cell([3.0, 8.0, 4.0], higher=[1.0, 4.0, 9.0], others={TORCHOPT: {"outcome": "no"}})
    assert defaults.ratio(alone, LOOP, "seconds") == 2.0
    assert defaults.ratio(alone, LOOP, "live_bytes") == pytest.approx(100 / 120)


def test_a_contender_without_numbers_is_infinitely_slow_and_without_rivals_nothing_is_known():
    failed = cell([1.0] * 3, others={LOOP: {"outcome": "RuntimeError"}})
    assert defaults.ratio(failed, LOOP, "seconds") == math.inf
    gone = {"outcome": "did not fit"}
    nobody = cell([1.0] * 3, others={HIGHER: gone, TORCHOPT: gone})
    for lacking in (nobody, gone):
        assert math.isnan(defaults.ratio(lacking, LOOP, "seconds"))
    assert verdicts({"a": failed, "b": nobody}) == [False, False, False, True, True, True]
    assert verdicts({"b": nobody, "c": gone}) == [None] * 6
    assert defaults.ahead(gone) == defaults.ahead(nobody) == ""


@pytest.mark.parametrize(
    ("slowest", "size", "expected"),
    [
        (1.1, 110, [True, True, True]),
        (1.2, 110, [True, False, True]),
        (1.1, 111, [True, True, False]),
    ],
)
def test_every_cell_counts_in_one_claim_and_the_median_in_the_other(slowest, size, expected):
    cells = {str(own): cell([own] * 3, size=size) for own in (0.9, 1.0, slowest)}
    assert verdicts(cells) == [*expected, True, True, True]
    claims = defaults.evaluate(cells)
    assert claims[0].numbers == "1.00 times"
    assert claims[1].numbers.endswith(f"up to {slowest:.2f} times ({slowest})")
    slower = {str(own): cell([own] * 3) for own in (1.01, 1.02, 0.5)}
    assert verdicts(slower)[:2] == [False, True]


def test_who_is_ahead_is_said_with_the_share_of_the_better_of_odeopts_two():
    text = defaults.ahead(cell([4.0] * 3, torchopt=[3.0] * 3, size=90))
    assert text == "seconds: higher 0.50"
    text = defaults.ahead(cell([1.0] * 3, others={RULE: {"live_bytes": [400]}}, size=200))
    assert text == "live bytes: higher 0.60, torchopt 0.50, unrolled autograd 0.50"


@pytest.mark.filterwarnings("ignore")
def test_the_report_of_a_smoke_run(tmp_path, monkeypatch):
    pytest.importorskip("higher")

    def refuse(network, task, point):
        raise NotImplementedError("not here")

    def other(network, task, point):
        run = defaults.unrolled(network, task, point)
        return lambda: 1.01 * run()

    monkeypatch.setitem(CONTENDERS, TORCHOPT, refuse)
    monkeypatch.setitem(CONTENDERS, "other", other)
    monkeypatch.setattr(processes, "run", lambda function, *args, limit: function(*args))
    arguments = ["defaults", "--preset", "smoke", "--results", str(tmp_path)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text()
    assert "| RecordedLoop: at most 1.1 times the time of the faster of higher and" in text
    assert f"- perceptron-1e3 Adam steps=2, {TORCHOPT}: NotImplementedError (not here)" in text
    assert "other: ArithmeticError (another gradient, off by 1.0e-02)" in text
    assert (tmp_path / "defaults-adam.png").is_file()
    (found,) = strict_json.loads((tmp_path / "results.json").read_bytes())["cells"].values()
    measured = {n: one for n, one in found["contenders"].items() if not one["outcome"]}
    assert measured.keys() == {LOOP, RULE, HIGHER, UNROLLED}
    for one in measured.values():
        assert one["float64"] < 1e-12 < one["float32"] < 1e-4
        assert len(one["seconds"]) == 1
        assert one["live_bytes"][0] > 979 * 4
