"""JAX's random numbers from a seed, see `core/random_numbers.py`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# Named, since the default of JAX is a setting of the user.
_ALGORITHM = "threefry2x32"


def split(seed: Any, number: int) -> jax.Array:
    """Returns `number` independent seeds, int32 [number, 2]."""
    keys = jax.random.key_data(jax.random.split(_key(seed), number))
    return jax.lax.bitcast_convert_type(keys, jnp.int32)


def fold_in(seed: Any, number: Any) -> jax.Array:
    """Returns a seed, int32 [2], that depends on a seed and a number of any integer dtype."""
    number = jax.lax.convert_element_type(number, jnp.uint32)
    return jax.lax.bitcast_convert_type(jax.random.key_data(jax.random.fold_in(_key(seed), number)), jnp.int32)


def uniform(shape: Any, seed: Any, dtype: str, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Returns numbers that are uniform in [low, high)."""
    return jax.random.uniform(_key(seed), _static(shape), dtype, low, high)


def normal(shape: Any, seed: Any, dtype: str) -> jax.Array:
    """Returns normal numbers of mean 0 and standard deviation 1."""
    return jax.random.normal(_key(seed), _static(shape), dtype)


def integers(shape: Any, seed: Any, low: int, high: int) -> jax.Array:
    """Returns int32 numbers that are uniform in low, ..., high - 1."""
    return jax.random.randint(_key(seed), _static(shape), low, high, jnp.int32)


def _key(seed: Any) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(jnp.asarray(seed, jnp.int32), jnp.uint32)
    return jax.random.wrap_key_data(bits, impl=_ALGORITHM)


def _static(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)
