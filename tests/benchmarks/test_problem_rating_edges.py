"""Corner cases of the rating tasks, their baselines and the check of their files."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import check_data
from benchmarks.check_data import EXPECTED, Expected, compare
from benchmarks.problems import ratings
from benchmarks.problems.ratings import BASELINES, SOURCES, Rated, Ratings, RatingTasks, Table


@pytest.fixture(scope="module")
def divided():
    return RatingTasks(ratings.made_up(users=80), 10, 15, tests=20)


def test_padding_is_zero_and_last_and_no_longer_than_needed(divided):
    held_out = divided.test().held_out
    assert bool((held_out.y[~held_out.known] == 0).all())
    assert bool((held_out.known.sort(1, descending=True).values == held_out.known).all())
    assert bool(held_out.known.any(0).all())


def test_the_error_of_several_predictions_at_once():
    y = torch.tensor([[[1.0], [-2.0]], [[3.0], [0.0]]])
    rated = Rated(torch.zeros(2, 2, 100), y, torch.tensor([[True, True], [True, False]]))
    found = rated.error(torch.stack([y, torch.zeros_like(y)]))
    assert found.tolist() == [[0, 0], pytest.approx([2.5**0.5, 3.0])]


def test_nobody_may_have_ratings_left():
    scores = torch.full((3, 100), torch.nan, dtype=torch.float64)
    scores[:, :5] = torch.arange(5, dtype=torch.float64)
    tasks = RatingTasks(Ratings(scores, 0.0, 1.0), shots=5, validation=0, tests=2)
    assert tasks.test().held_out.x.shape == (2, 1, 100)
    assert not tasks.test().evaluated().any()


def test_baselines_do_not_look_at_held_out_ratings(divided):
    train, test = divided.train_scores(), divided.test()
    hidden = test._replace(held_out=test.held_out._replace(y=torch.zeros_like(test.held_out.y)))
    one, two = (ratings.baseline_predictions(train, t) for t in (test, hidden))
    assert all(torch.equal(one[name], two[name]) for name in BASELINES)


def table():
    """Every one of 4 users rated all of 30 items, and what is to be expected of that."""
    user, item = (axis.ravel() for axis in np.mgrid[1:5, 1:31])
    expected = Expected("", (4, 30, 120), (1.0, 5.0), 30, (4, 4), "", spread=(24,) * 5)
    return Table(user, item, 1.0 + (user + item) % 5), expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (5, 30, 120)}, "users, items and ratings: 4, 30, 120, expected 5, 30, 120"),
        ({"scores": (0.5, 5.0)}, "lowest and highest rating: 1.0, 5.0, expected 0.5, 5.0"),
        ({"fewest": 31}, "fewest ratings of a user: 30, expected 31"),
        ({"tasks": (4, 3)}, "20, ratings of the 100 most rated items: 4, 4, expected 4, 3"),
        ({"spread": (25, 23, 24, 24, 24)}, "ratings of each value: 24, 24, 24, 24, 24, expected"),
    ],
)
def test_each_difference_from_what_is_known_is_named(change, message):
    found, expected = table()
    (wrong,) = compare(found, replace(expected, **change))
    assert message in wrong


def test_a_file_packed_anew_is_as_expected_but_not_the_same(tmp_path, monkeypatch):
    found, expected = table()
    columns = zip(found.user, found.item, found.rating.astype(int), strict=True)
    content = "".join(f"{u}\t{i}\t{r}\t9\n" for u, i, r in columns).encode()
    (tmp_path / SOURCES["movielens-100k"].file).write_bytes(gzip.compress(content))
    known = replace(expected, unpacked=check_data._digest(content))
    monkeypatch.setitem(EXPECTED, "movielens-100k", known)
    finding = check_data.check("movielens-100k", tmp_path)
    assert (finding.present, finding.wrong, finding.same_file) == (True, (), False)
    result = CliRunner().invoke(check_data.app, ["--data", str(tmp_path)])
    assert result.exit_code == 0
    assert "there and as expected" in result.stdout
    assert "not, byte for byte, the one" in result.stdout


def test_every_source_has_its_expectations():
    assert EXPECTED.keys() == SOURCES.keys()
    for expected in EXPECTED.values():
        assert not expected.spread or sum(expected.spread) == expected.counts[2]
