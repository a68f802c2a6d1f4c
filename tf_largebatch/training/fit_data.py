"""What can be told of the data given to `fit` before it trains on them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import keras


def known_batch_size(x: Any, batch_size: int | None) -> int | None:
    """Returns the batch size of `fit`'s data where it is known without drawing a batch."""
    if is_dataset(x):
        shape = getattr(keras.tree.flatten(x.element_spec)[0], "shape", None)
        return shape[0] if shape is not None and shape.rank else None
    leaves = keras.tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return min(batch_size or 32, int(leaves[0].shape[0]))
    return None


def is_dataset(x: Any) -> bool:
    """Returns whether data for `fit` are a tf.data.Dataset."""
    return hasattr(x, "element_spec")


def chained(first: Any, rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yields the first batch, which was drawn already, then the rest."""
    yield first
    yield from rest
