"""What the layer-wise update needs of JAX: XLA fuses its ordinary operations, so there are no kernels to call.

XLA computes `core/momentum.py` in one pass that reads weights, velocity and gradient and writes the first two. The
norms are one reduction before it: CLARS's reads the weights, LARS's the weights and the gradient.
"""

from __future__ import annotations

from typing import Any

from jax.experimental.sparse import JAXSparse

from tf_largebatch.core import rates

l2_norm = rates.l2_norm


def dense(gradient: Any, variable: Any) -> Any:
    """Returns a sparse gradient as a dense array, with repeated indices added up; others, and None, as given."""
    return gradient.todense() if isinstance(gradient, JAXSparse) else gradient


def takes(dtype: str) -> bool:
    """Returns whether there are update kernels for variables of this dtype: never."""
    return False
