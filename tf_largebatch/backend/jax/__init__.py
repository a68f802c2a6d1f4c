"""Differentiation by JAX: recorded tensors, kernels and loops as functions of arrays."""
