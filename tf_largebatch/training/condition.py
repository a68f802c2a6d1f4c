"""Something that a step does or leaves, on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.condition import do_if
else:
    from tf_largebatch.backend.tensorflow.condition import do_if

__all__ = ["do_if"]
