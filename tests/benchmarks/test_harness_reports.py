"""Tables, plots and the description of the machine."""

from __future__ import annotations

import math

import matplotlib.image
import pytest
import torch

from benchmarks.harness import markdown, outline, plots, strict_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345e-4, "1.23e-4"),
        (-0.5, "-5.00e-1"),
        (9.999, "1.00e1"),
        (1e-100, "1.00e-100"),
        (0.0, "0"),
        (math.nan, "unstable"),
        (-math.inf, "unstable"),
    ],
)
def test_scientific(value, text):
    assert markdown.scientific(value) == text


def test_with_spread():
    assert markdown.with_spread(1e-3, 2.5e-4) == "1.00e-3 ± 2.50e-4"
    assert markdown.with_spread(math.nan, 0.1) == "unstable"


def test_table():
    text = markdown.table(["N", "a|b"], [[10, 1e-3], ["x", math.inf]])
    assert text.splitlines() == [
        "| N | a\\|b |",
        "|---|---:|",
        "| 10 | 1.00e-3 |",
        "| x | unstable |",
    ]


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="1 entries under 2 headers"):
        markdown.table(["a", "b"], [[1]])


@pytest.mark.parametrize("count", [1, 9])
def test_a_plot_is_a_readable_png(tmp_path, count):
    x = [10, 100, 1000, 10000]
    lines = [
        plots.Series(f"line {k}", x, [1.0, math.nan, 0.0, 1e-3 * (k + 1)]) for k in range(count)
    ]
    slope = plots.Slope("first order", -1, (10, 1.0), 1000)
    path = plots.loglog(tmp_path / "p.png", plots.Labels("title", "N", "error"), lines, [slope])
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 500
    assert picture.min() < picture.max()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_plot_leaves_the_old_one(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="shorter"):
        plots.loglog(path, plots.Labels("", "", ""), [plots.Series("a", [1, 2], [1])])
    assert path.read_bytes() == b"old"


def test_the_environment_is_plain_data():
    found = outline.environment(torch.device("cpu"))
    assert strict_json.loads(strict_json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device_name"]
