"""How stale weights are moved on: within the step's scope an assignment is a new name for a value, not a copy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


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
        target.assign(source.value)
    step.assign(step.value + 1)
