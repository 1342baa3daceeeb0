"""Choices made from a tolerance, and error estimates, against the true error."""
