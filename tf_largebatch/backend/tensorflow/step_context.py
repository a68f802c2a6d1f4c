"""Where code runs: within a step that is being traced, or outside of it."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf


def named(name: str) -> contextlib.AbstractContextManager[Any]:
    """Within it operations get this name, which profiles and graphs show."""
    return tf.name_scope(name)


def scope(values: list[tuple[Any, Any]]) -> keras.StatelessScope:
    """Returns a scope to enter: within it variables have these values, and what is assigned is dropped.

    Args:
        values: Pairs of a Keras variable and its value.
    """
    return keras.StatelessScope(values)


def is_known(x: Any) -> bool:
    """Returns whether the numbers of an array or tensor can be read now."""
    return hasattr(x, "numpy")


def of_one_replica(model: Any, data: Any) -> Any:
    """Returns the first replica's part of a batch, nested tensors."""
    strategy = model.distribute_strategy
    return keras.tree.map_structure(lambda t: None if t is None else strategy.experimental_local_results(t)[0], data)
