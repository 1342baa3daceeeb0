"""Few-shot classification of pictures (the paper's Table 3)."""
