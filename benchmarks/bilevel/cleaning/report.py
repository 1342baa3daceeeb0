"""The report of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from benchmarks import budget
from benchmarks.bilevel.cleaning import cells, contenders, problem
from benchmarks.bilevel.cleaning.cells import CONTEST, REFERENCES
from benchmarks.bilevel.cleaning.sizes import SIZES, Case, Sizes
from benchmarks.harness import markdown, outline
from benchmarks.harness.curves import Curve, curves
from benchmarks.harness.outline import Run
from benchmarks.harness.plots import Labels
from benchmarks.harness.registry import Settings
from benchmarks.problems import omniglot

NAME = "bilevel --only cleaning"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

LABELS = {"learned": "weights learned by the gradient", "searched": "small-loss selection, tuned"}
KEPT = {"kept": "the examples of learned weight above one half"}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells.cells(settings, sizes)
    done = outline.compute_alone(settings, NAME, REVISION, sizes, chosen)
    cases = cells.available(settings, sizes)
    curves(
        settings.store.directory / "auc.png",
        Labels("wrong labels told from right ones", "updates of the weights", "AUC"),
        [_curve(done, case, sizes) for case in cases],
        bottom=0.5,  # chance
    )
    sections = [_head(sizes), *(_section(done, case, sizes) for case in cases)]
    if len(cases) < len(sizes.cases):
        sections.append(f"Omniglot was left out: {omniglot.FILE} is not in the data folder.")
    sections.append("![AUC by update](auc.png)")
    outline.write(settings, "Training examples with wrong labels", done, sections)


def _curve(run: Run, case: Case, sizes: Sizes) -> Curve:
    found = [_of(run, case, CONTEST, "learned", seed)["aucs"] for seed in range(sizes.seeds)]
    means = [fmean(values) for values in zip(*found, strict=True)]
    return Curve(str(case), range(1, len(means) + 1), means)


def _of(run: Run, case: Case, part: str, name: str, seed: int) -> dict[str, Any]:
    return run.cells[cells.key(case, seed, part)][name]


def _section(run: Run, case: Case, sizes: Sizes) -> str:
    names = [(REFERENCES, name, name) for name in cells.REFERENCE_SETS]
    names += [(CONTEST, name, label) for name, label in (LABELS | KEPT).items()]
    rows: list[list[markdown.Entry]] = []
    for part, name, label in names:
        found = [_of(run, case, part, name, seed) for seed in range(sizes.seeds)]
        rows.append([label, *(_mean(found, k) for k in ("alone", "added", "auc", "f1", "spent"))])
    headers = ["trained on", "accuracy", "with the validation examples", "AUC", "F1", "budget"]
    title = f"## {case.data}: {case.share:.0%} of the labels wrong, {_KINDS[case.kind]}"
    return f"{title}\n\n{markdown.table(headers, rows)}\n{_verdict(run, case, sizes)}"


FIELDS = {
    "alone": "test accuracy",
    "added": "test accuracy with the validation examples added",
    "auc": "AUC",
}
_KINDS = {"uniform": "by any other class", "next": "by the following class"}


def _verdict(run: Run, case: Case, sizes: Sizes) -> str:
    """Which contender won, in words."""
    found = {
        name: [_of(run, case, CONTEST, name, seed) for seed in range(sizes.seeds)]
        for name in LABELS
    }
    sentences: list[str] = []
    for field, what in FIELDS.items():
        ours, theirs = (fmean(cell[field] for cell in found[name]) for name in LABELS)
        sentences.append(_compare(what, ours, theirs))
        if field == "auc" and ours < theirs:
            sentences.append(_fitted(found["learned"], case, sizes))
    trials = fmean(cell["trials"] for cell in found["searched"])
    sentences.append(f"The search made {trials:.0f} trials (mean over seeds).")
    return " ".join(sentences)


def _fitted(found: list[dict[str, Any]], case: Case, sizes: Sizes) -> str:
    """What became of the validation loss and the AUC while weights were learned."""
    losses, aucs = (
        [fmean(values) for values in zip(*(cell[field] for cell in found), strict=True)]
        for field in ("validation losses", "aucs")
    )
    best = max(range(len(aucs)), key=aucs.__getitem__)
    held = sizes.validation[case.data]
    unit = "validation examples" if case.data == "digits" else "validation drawings per character"
    return (
        f"While the weights were learned, one for every training example, the loss of the {held}"
        f" {unit} fell from {losses[0]:.2f} to {losses[-1]:.2f}; the AUC was highest after update"
        f" {best + 1} of {len(aucs)} ({aucs[best]:.3f}; {aucs[-1]:.3f} after the last). Where it"
        " falls again, the weights fit the few validation examples rather than the labels; a"
        " loss that ranks examples has no such freedom."
    )


def _compare(what: str, ours: float, theirs: float) -> str:
    if ours == theirs:
        return f"Both have the same {what} ({ours:.3f})."
    winner = "The gradient" if ours > theirs else "Small-loss selection"
    high, low = max(ours, theirs), min(ours, theirs)
    return f"{winner} has the higher {what} ({high:.3f} against {low:.3f})."


def _mean(found: Sequence[dict[str, Any]], field: str) -> str:
    values = [cell[field] for cell in found if cell.get(field) is not None]
    if not values:
        return "-"
    if field == "spent":
        return f"{fmean(values):.0f}"
    return f"{fmean(values):.3f}" + (f" ± {pstdev(values):.3f}" if len(values) > 1 else "")


def _head(sizes: Sizes) -> str:
    return f"""Of the training labels a share is replaced at random. Each training example gets a
weight, the sigmoid of a score, and the scores are learned by {sizes.updates} updates (Adam,
{contenders.UPDATE_SIZE:g}) along the exact gradient of the loss of the clean validation examples
after a whole training of {sizes.steps} steps (SGD with momentum {problem.MOMENTUM:g}, learning rate
{problem.LR:g}, minibatches of {sizes.batch}, {problem.SLOTS} kept states by Binomial); every
update starts from another initialisation with other minibatches. Networks have one hidden layer of
{problem.HIDDEN} units (tanh), float32.

Small-loss selection is given the same budget: a first training (on the training examples, the
validation examples or both) gives each training example a loss, and those of the smallest are kept
for a second training; what is trained on first, for how long and how many are kept is chosen by
random search, by the validation loss. {budget.RULE}

Accuracies are means over new trainings ({sizes.retrainings} each) from initialisations and orders
of minibatches that no contender has seen, on test examples (of digits: by other writers), and over
draws of the examples and of the wrong labels ({sizes.seeds}; ± standard deviation). AUC and F1 say
how well wrong labels are found: AUC by the ranking, F1 by the examples of weight below one half, or
not kept. "No training examples" with the validation examples is training on those alone."""
