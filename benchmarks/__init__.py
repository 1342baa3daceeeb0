"""Benchmarks of odeopt: `python -m benchmarks` lists them."""
