"""What stands at the head and at the end of the report."""

from __future__ import annotations

from benchmarks.few_shot_images import costs, published
from benchmarks.few_shot_images.cells import OWN
from benchmarks.few_shot_images.protocols import MADE_UP
from benchmarks.few_shot_images.sizes import Sizes
from benchmarks.harness.registry import Preset
from benchmarks.methods import LABELS


def head(preset: Preset, sizes: Sizes) -> str:
    """How the numbers were made."""
    own = ", ".join(LABELS[name] for name in OWN)
    made = _HEAD.format(own=own, rule=costs.RULE)
    if preset is Preset.BUDGET:
        made += f"\n\n{_BUDGET}"
    if any(setting.data == MADE_UP for setting in sizes.settings):
        made += "\n\n**No data was found: the pictures are made up.**"
    return made


def tail(preset: Preset, sizes: Sizes) -> str:
    """What can be compared with published numbers, and what was not run."""
    printed = any(published.column(s.data, s.ways, s.shots) for s in sizes.settings)
    parts = [f"## Published numbers\n\n{published.ORIGINS}"] if printed else []
    if preset is Preset.BUDGET:
        parts.append(_NOT_RUN)
    return "\n\n".join(parts)


TITLE = "Few-shot classification of pictures (the paper's Table 3)"

_HEAD = """\
A task is to tell new classes apart after adaptation to a few pictures of each. The protocols
"imaml" and "maml" prepare data as the released code of these papers does, and have their nets,
learning rates and steps; they differ in classes, rotation, inversion and nets, and their numbers
must not be mixed. Classes of meta-training, validation and meta-test are disjoint, which is
checked (the released evaluation of iMAML draws 73 % of its test classes from those of training).
Normalisation is by the statistics of the batch at hand, also at the test, as in these papers: the
test pictures of a task are predicted together ("transductive"). float32, one seed.

Accuracy is the share of right labels, mean over test tasks ± 1.96 standard errors (95 %
intervals). It is reached by gradient descent from the learned initialisation; {own},
which learn their adaptation, use their own. p: one-sided Wilcoxon test over tasks. A-MAML solves
its flow with Dormand-Prince, tolerances 1e-3 and 1e-5, and keeps a state per step of gradient
descent. Failed tasks are those whose inner solve diverged, or whose gradient a guard refused; they
are left out of their meta-update. Seconds are of the clock, with whatever else the machine did.

{rule}"""

_BUDGET = """This preset compares methods at equal cost, and the budget is small: each may spend as
many gradient evaluations as the others, so that one whose meta-gradient is expensive makes fewer
meta-updates. Inner loops are short (T = 0.5), meta-batches small and there is one validation
picture per class; the protocols' names say "short" for that. All accuracies are far below those
that the papers reach with thousands of times as many gradients, and a ranking at this budget says
who learns fastest at first, not who ends up best."""

_NOT_RUN = """## What was not run

The preset "paper": the protocols at full length (20,000 and 60,000 meta-updates, 5 and 20 ways, 1
and 5 shots, A-MAML at T = 0.5, 1 and 5). A meta-update of the 20-way 1-shot Omniglot protocol costs
about 1 TFLOP, which takes a CPU core a minute or so, and a run of one method 20,000 of them. It can
be stopped at any time and goes on from its last checkpoint, ten meta-updates back at most
(`--device cuda`, `--only` for some cells), but no GPU was at hand for this report. Published
accuracies, where they stand in a table above, are of those lengths and are no target for this
budget."""
