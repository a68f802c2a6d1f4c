"""How the backend in use orders the work of a step, and loops over examples."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.order import after, over_examples
else:
    from tf_largebatch.backend.tensorflow.order import after, over_examples

__all__ = ["after", "over_examples"]
