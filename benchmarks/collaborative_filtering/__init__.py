"""Few-shot collaborative filtering (the paper's Tables 1 and 2)."""
