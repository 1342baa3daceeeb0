"""The two sweeps, forward and backward, over plain Python loops."""
