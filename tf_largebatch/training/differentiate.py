"""A gradient pass without norms on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.differentiate import dense, gradients_at, run_after, value_and_gradients
else:
    from tf_largebatch.backend.tensorflow.differentiate import dense, gradients_at, run_after, value_and_gradients

__all__ = ["dense", "gradients_at", "run_after", "value_and_gradients"]
