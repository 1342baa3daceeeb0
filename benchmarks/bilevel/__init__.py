"""Bilevel problems: weights of examples, hyperparameters and images by the exact gradient."""
