"""How weights are copied from one variable to another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def read(variable: Any) -> Any:
    """Returns the present value of a Keras variable as a tensor."""
    return variable.value


def push(pairs: Iterable[tuple[Any, Any]], step: Any) -> None:
    """Copies each source into its target, in this order, and adds 1 to the step.

    Args:
        pairs: Keras variables, target and source.
        step: An integer variable.
    """
    for target, source in pairs:
        copy(target, source)
    step.assign(step.value + 1)


def copy(target: Any, source: Any) -> None:
    """Copies the value of one Keras variable into another.

    Outside of a compiled step it makes a new array: a compiled step overwrites its arrays, and no two variables may
    share one.
    """
    value = source.value
    target.assign(value if isinstance(value, jax.core.Tracer) else jnp.copy(value))
