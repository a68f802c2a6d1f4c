"""Where code runs: within a step that is being traced, or outside of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


def named(name: str) -> contextlib.AbstractContextManager[Any]:
    """Within it operations get this name, which profiles and graphs show."""
    return tf.name_scope(name)


@contextlib.contextmanager
def outside_of_the_step(model: Any) -> Iterator[None]:
    """Within it variables are created and written at once, also in a step that a loop of the user's traces."""
    strategy = model.distribute_strategy
    with tf.init_scope(), contextlib.nullcontext() if tf.distribute.has_strategy() else strategy.scope():
        yield


def of_one_replica(model: Any, data: Any) -> Any:
    """Returns the first replica's part of a batch, nested tensors."""
    strategy = model.distribute_strategy
    return keras.tree.map_structure(lambda t: None if t is None else strategy.experimental_local_results(t)[0], data)
