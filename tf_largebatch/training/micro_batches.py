"""Micro-batches on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.micro_batches import (
        MicroBatches,
        batch_size_of,
        composite_examples,
        mapped_over_micro_batches,
        number_of_micro_batches,
        unless_empty,
    )
else:
    from tf_largebatch.backend.tensorflow.micro_batches import (  # type: ignore[assignment]
        MicroBatches,
        batch_size_of,
        composite_examples,
        mapped_over_micro_batches,
        number_of_micro_batches,
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
