"""Finds out, when the backward pass is traced, what it comes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def watched(t: jax.Array, on_gradient: Callable[[], None]) -> jax.Array:
    """Returns the array behind an identity; `on_gradient` is called if a backward pass that is traced reaches it."""

    @jax.custom_vjp
    def identity(t: jax.Array) -> jax.Array:
        return t

    def backward(_: None, d: jax.Array) -> tuple[jax.Array]:
        on_gradient()
        return (d,)

    identity.defvjp(lambda t: (t, None), backward)
    return identity(t)


class Watch:
    """Watches the values of variables.

    Attributes:
        seen: The variables whose values the backward pass has reached, by identity.
    """

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def __call__(self, variable: Any, value: jax.Array) -> jax.Array:
        """Returns the variable's value, watched."""
        return watched(value, lambda: self.seen.setdefault(id(variable), variable))
