"""Sparse and ragged tensors of the backend in use, and its error for what does not fit together."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.composite import (
        INVALID_ARGUMENT,
        REFUSES_COMPOSITE,
        is_composite,
        is_sparse,
        of_ragged_shape,
    )
else:
    from tf_largebatch.backend.tensorflow.composite import (
        INVALID_ARGUMENT,
        REFUSES_COMPOSITE,
        is_composite,
        is_sparse,
        of_ragged_shape,
    )

__all__ = ["INVALID_ARGUMENT", "REFUSES_COMPOSITE", "is_composite", "is_sparse", "of_ragged_shape"]
