"""End points of the curves in Figure 2 of the paper, read off its slides (about ±0.01)."""

from __future__ import annotations

FIGURE_2: dict[tuple[str, int], dict[str, float]] = {
    ("cosmixture", 50): {
        "a-maml": 0.15, "maml": 0.35, "maml-1": 0.39, "imaml-gd": 0.42, "fomaml": 0.49,
        "reptile": 0.52,
    },
    ("cosmixture", 100): {
        "a-maml": 0.285, "fomaml": 0.36, "imaml-gd": 0.51, "maml-1": 0.54, "reptile": 0.58,
        "maml": 0.605,
    },
    ("alpine", 50): {
        "a-maml": 0.18, "imaml-gd": 0.39, "maml": 0.39, "maml-1": 0.43, "fomaml": 0.52,
        "reptile": 0.52,
    },
    ("alpine", 100): {
        "a-maml": 0.355, "fomaml": 0.46, "imaml-gd": 0.54, "maml-1": 0.57, "maml": 0.58,
        "reptile": 0.61,
    },
}  # fmt: skip
"""nRMSE at about 1000 epochs by family, shots and method."""
