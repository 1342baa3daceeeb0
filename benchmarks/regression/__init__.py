"""Meta-learned regression of 2D functions (the paper's Figure 2)."""
