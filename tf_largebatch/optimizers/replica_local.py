"""A value for each replica; JAX has one program for all devices, and one value."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.replica_local import ReplicaLocal
else:
    from tf_largebatch.backend.tensorflow.replica_local import ReplicaLocal  # type: ignore[assignment]

__all__ = ["ReplicaLocal"]
