"""What stands at the head of the report."""

from __future__ import annotations

from typing import Any

import odeopt
from benchmarks.collaborative_filtering.sizes import MADE_UP, Sizes
from benchmarks.harness.registry import Preset

PAPER_UPDATES = 5000


def head(preset: Preset, circumstances: dict[str, Any], sizes: Sizes) -> str:
    """How the numbers were made and what they can be compared with."""
    listed = "\n".join(f"- {name}: {value}" for name, value in circumstances.items())
    made = _HEAD.format(
        preset=preset.value, version=odeopt.__version__, listed=listed, epochs=sizes.epochs,
        tests=sizes.tests, updates=_updates(sizes),
    )  # fmt: skip
    if any(setting.data == MADE_UP for setting in sizes.settings):
        made += "\n\n**No data was found: the ratings are made up.**"
    return f"{made}\n\n{_COMPARED}"


def _updates(sizes: Sizes) -> str:
    if sizes.updates == PAPER_UPDATES:
        return f"{sizes.updates} meta-updates, as in the paper"
    return f"{sizes.updates} meta-updates (the paper: {PAPER_UPDATES})"


_HEAD = """# Collaborative filtering (the paper's Tables 1 and 2)

Made by `python -m benchmarks collaborative-filtering --preset {preset}`, odeopt {version}. All
numbers are in `results.json`.

{listed}

One user's ratings are one task. The network is the paper's (one-hot 100-40-40-1, tanh, 5721
parameters), in float32; the loss of every inner and outer problem is half the mean square on
standardised ratings. Inner learning rate 0.01; meta-batches of 5 tasks, Adam with 1e-3 outside;
{updates}, one seed. A-MAML keeps every state.

{tests} users are for the meta-test, the same for every method. The paper's 100 most rated movies
are kept, and the users with at least 10 ratings of them: this gives the paper's 4,985 tasks on
MovieLens-1M and, on the latest-small release of 2016 (`movielens-small-2016`), its 489 tasks of
"MovieLens-100K". The classic MovieLens-100K (`movielens-100k`) stands beside it, with at least 20
ratings as the paper's text has it (575 tasks). A user with too few ratings for a training task is
never drawn, and one with too few to adapt to is no test user. Each time that a user is drawn for
training their ratings are divided anew.

A test user's task is to adapt to as many ratings as in training and to predict all the others:
"held-out" is the root mean square error on these, "adapted to" that on the ratings adapted to,
both in units of the standard deviation of the training users' ratings (nRMSE); mean ± standard
deviation over users. The initialisation is adapted by gradient descent for the steps of the
heading, as the method does it in training ("its own"), and by {epochs} epochs of Adam, 1e-3, which
is what the authors' released code does at the test of another experiment. p: one-sided Wilcoxon
test, over users, of the held-out errors after gradient descent. Failed tasks are those whose inner
solve diverged, or whose gradient a guard refused; they are left out of their meta-update. The
baselines learn from the same training users, from all their ratings."""

_COMPARED = """## What can be compared with the published numbers

Not their size. The paper's protocol for this experiment is incomplete and its code for it was not
released: the scale and the denominator of its nRMSE, the division of the ratings and the steps of
MAML at the test are not stated, and the shots in its text differ from those in its tables. Its
numbers, 0.02 to 0.41, cannot be held-out errors in units of a standard deviation: on MovieLens the
best methods known, given all ratings, reach about 0.8 in that unit. We infer that they are errors
on the ratings adapted to, or have another denominator: the columns "adapted to" are the ones to
set beside them. What can be compared is which method comes out ahead. The baselines say what a
held-out error is worth: 1 is about what the global mean scores."""
