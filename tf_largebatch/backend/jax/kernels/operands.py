"""Chooses the dtype in which `a` and `d` are multiplied; products are always added up in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tf_largebatch.norms.device import device

_HALF = (jnp.bfloat16, jnp.float16)


def operands(a: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `a` and `d` in the dtype of their products.

    The matrix units of GPUs and TPUs multiply half-precision numbers exactly and add in float32, as they do for the
    weight gradient, so two tensors of the same half precision stay as they are there. All others become float32.
    """
    if device() != "cpu" and a.dtype == d.dtype and a.dtype in _HALF:
        return a, d
    return a.astype(jnp.float32), d.astype(jnp.float32)


def products(equation: str, a: jax.Array, d: jax.Array) -> jax.Array:
    """Returns `einsum(equation, a, d)` in float32, at the precision of the weight gradient."""
    return jnp.einsum(equation, *operands(a, d), preferred_element_type=jnp.float32)


def inner_products(t: jax.Array) -> jax.Array:
    """Returns the Gram matrices `t_p . t_q` of t [..., T, C], float32, shape [..., T, T].

    Float32 numbers are multiplied as such on every device: the terms of a Gram form's sum cancel.
    """
    t, _ = operands(t, t)
    precision = lax.Precision.HIGHEST if t.dtype == jnp.float32 else None
    return jnp.einsum("...pc,...qc->...pq", t, t, precision=precision, preferred_element_type=jnp.float32)
