"""What a training step that runs out of memory says, on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.sized_step import explaining_out_of_memory
else:
    from tf_largebatch.backend.tensorflow.sized_step import explaining_out_of_memory

__all__ = ["explaining_out_of_memory"]
