"""Derivatives on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.derivatives import Derivatives
else:
    from tf_largebatch.backend.tensorflow.derivatives import Derivatives  # type: ignore[assignment]

__all__ = ["Derivatives"]
