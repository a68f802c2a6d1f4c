"""The update kernels of the backend in use. JAX has none (`takes` is never true): XLA fuses ordinary operations."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.update_kernels import dense as dense
    from tf_largebatch.backend.jax.update_kernels import l2_norm as l2_norm
    from tf_largebatch.backend.jax.update_kernels import takes as takes
else:
    from tf_largebatch.backend.tensorflow.update_kernels import can_decay_velocity as can_decay_velocity
    from tf_largebatch.backend.tensorflow.update_kernels import classic_step as classic_step
    from tf_largebatch.backend.tensorflow.update_kernels import decay_velocity as decay_velocity
    from tf_largebatch.backend.tensorflow.update_kernels import dense as dense
    from tf_largebatch.backend.tensorflow.update_kernels import l2_norm as l2_norm
    from tf_largebatch.backend.tensorflow.update_kernels import popular_step as popular_step
    from tf_largebatch.backend.tensorflow.update_kernels import takes as takes
