"""Loss scaling on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.loss_scaling import agree_on_overflow, apply
else:
    from tf_largebatch.backend.tensorflow.loss_scaling import agree_on_overflow, apply

__all__ = ["agree_on_overflow", "apply"]
