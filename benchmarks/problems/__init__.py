"""The learning problems and published numbers that the benchmarks use."""
