"""Micro-batches on the backend in use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.training.splitting import number_of_micro_batches

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.micro_batches import MicroBatches, batch_size_of, composite_examples, unless_empty
else:
    from tf_largebatch.backend.tensorflow.micro_batches import (  # type: ignore[assignment]
        MicroBatches,
        batch_size_of,
        composite_examples,
        unless_empty,
    )

__all__ = [
    "MicroBatches",
    "batch_size_of",
    "composite_examples",
    "mapped_over_micro_batches",
    "number_of_micro_batches",
    "unless_empty",
]


def mapped_over_micro_batches(function: Callable[[Any, Any], Any], data: Any, like: Any, micro_batch_size: int) -> Any:
    """Applies a function to each micro-batch in one compiled loop and concatenates its results.

    Args:
        function: Of a micro-batch and its number, int32; returns a tensor with the examples on axis 0.
        data: Nested tensors with the examples on axis 0.
        like: A tensor in the shape and dtype of the result.
        micro_batch_size: Number of examples in a micro-batch.

    Returns:
        Tensor in the shape and dtype of `like`.
    """
    batches = MicroBatches(data, static_or_dynamic_size(like, 0), micro_batch_size)
    mapped = functools.partial(batches.mapped, function, like)
    if isinstance(batches.number, int) and batches.number:
        return mapped()
    return unless_empty(mapped, like)
