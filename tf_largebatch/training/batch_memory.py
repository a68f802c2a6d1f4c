"""What a training step takes by its number of examples, on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.batch_memory import batch_memory
else:
    from tf_largebatch.backend.tensorflow.batch_memory import batch_memory

__all__ = ["batch_memory"]
