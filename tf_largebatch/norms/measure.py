"""The measuring pass of the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.measure import measure
else:
    from tf_largebatch.backend.tensorflow.measure import measure

__all__ = ["measure"]
