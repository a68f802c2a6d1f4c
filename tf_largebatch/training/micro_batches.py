"""Micro-batches on the backend in use."""

from tf_largebatch.backend.tensorflow.micro_batches import (
    MicroBatches,
    batch_size_of,
    mapped_over_micro_batches,
    number_of_micro_batches,
    unless_empty,
)

__all__ = ["MicroBatches", "batch_size_of", "mapped_over_micro_batches", "number_of_micro_batches", "unless_empty"]
