"""Sparse arrays, which no rule measures on JAX, and JAX's error for what does not fit together."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import sparse

INVALID_ARGUMENT: type[Exception] = jax.errors.JaxRuntimeError
REFUSES_COMPOSITE = True


def is_sparse(t: Any) -> bool:
    """Returns whether `t` is a sparse array."""
    return isinstance(t, sparse.JAXSparse)


def is_composite(t: Any) -> bool:
    """Returns whether `t` is a sparse array; JAX has no ragged ones."""
    return is_sparse(t)


def of_ragged_shape(t: Any, like: Any) -> Any:
    """Returns `t`: JAX has no ragged arrays."""
    del like
    return t
