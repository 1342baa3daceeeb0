"""Weights of examples through the training of a small transformer, with its need of memory."""
