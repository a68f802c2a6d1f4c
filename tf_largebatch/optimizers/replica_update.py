"""How the layer-wise update hooks into Keras's optimizer on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.replica_update import ReplicaUpdate
else:
    from tf_largebatch.backend.tensorflow.replica_update import ReplicaUpdate  # type: ignore[assignment]

__all__ = ["ReplicaUpdate"]
