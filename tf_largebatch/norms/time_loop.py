"""The loop over the time steps of recurrent layers on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.time_loop import scan, shown_steps
else:
    from tf_largebatch.backend.tensorflow.time_loop import scan, shown_steps

__all__ = ["scan", "shown_steps"]
