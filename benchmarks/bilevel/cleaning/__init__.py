"""Weights of training examples, some with wrong labels, by the gradient of validation."""
