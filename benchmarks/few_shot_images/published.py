"""Table 3 of the paper, and where its numbers come from."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.few_shot_images.protocols import MINI_IMAGENET, OMNIGLOT


class Number(NamedTuple):
    """A printed accuracy in percent and its half-width.

    Attributes:
        mean: The accuracy.
        half_width: As printed.
        origin: Who measured it.
    """

    mean: float
    half_width: float
    origin: str

    def __str__(self) -> str:
        return f"{self.mean:g} ± {self.half_width:g}"


COPIED = "in iMAML's Table 2"
OWN = "the A-MAML paper's own"

_ROWS = {
    "maml": ((95.8, 0.3), (48.70, 1.84), COPIED),
    "fomaml": ((89.4, 0.5), (48.07, 1.75), COPIED),
    "reptile": ((89.43, 0.14), (49.97, 0.32), COPIED),
    "imaml-gd": ((94.46, 0.42), (48.96, 1.84), COPIED),
    "imaml-hf": ((96.18, 0.36), (49.30, 1.88), COPIED),
    "a-maml T=0.5": ((96.36, 0.39), (49.43, 1.64), OWN),
    "a-maml T=1": ((96.79, 0.34), (49.47, 1.77), OWN),
}
_COMLN = Number(53.01, 0.62, "the COMLN paper's own, Conv-4, 1000 tasks; not in Table 3")

TABLE_3: dict[tuple[str, int, int], dict[str, Number]] = {
    (OMNIGLOT, 20, 1): {name: Number(*row[0], row[2]) for name, row in _ROWS.items()},
    (MINI_IMAGENET, 5, 1): {name: Number(*row[1], row[2]) for name, row in _ROWS.items()}
    | {"comln": _COMLN},
}
"""By data set, ways and shots, and contender."""

ORIGINS = (
    "Table 3 of the A-MAML paper measures A-MAML only. Its rows of MAML, FOMAML, Reptile, iMAML-GD"
    " and iMAML-HF are those of iMAML's Table 2 to the last digit, which in turn quotes the first"
    " three from MAML's and Reptile's papers; Reptile's mini-ImageNet number is its transductive"
    " one. No code for this experiment was released with the paper, and its learning rate, steps"
    " and number of updates for A-MAML are not stated. COMLN's number is from its own paper."
)


def column(data: str, ways: int, shots: int) -> dict[str, Number]:
    """What is printed for a setting, by contender; empty where nothing is."""
    return TABLE_3.get((data, ways, shots), {})


def beside(contender: str, printed: dict[str, Number]) -> str:
    """What stands beside a contender; A-MAML without a horizon of its own has the paper's 0.5."""
    name = "a-maml T=0.5" if contender == "a-maml" else contender
    return str(printed[name]) if name in printed else ""
