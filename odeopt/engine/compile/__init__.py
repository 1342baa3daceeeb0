"""Kernels, traced or generated, and what of torch they stand on."""
