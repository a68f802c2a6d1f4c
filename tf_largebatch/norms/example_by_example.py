"""Differentiation of a layer alone, example by example, on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.example_by_example import (
        contributions,
        identity,
        norms_and_gradients,
        on_these_values,
        require_rows,
        split_columns,
    )
else:
    from tf_largebatch.backend.tensorflow.example_by_example import (
        contributions,
        identity,
        norms_and_gradients,
        on_these_values,
        require_rows,
        split_columns,
    )

__all__ = ["contributions", "identity", "norms_and_gradients", "on_these_values", "require_rows", "split_columns"]
