"""What ConAdv does by different means on each backend."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax import operations, replicas, snapshots, step_context
    from tf_largebatch.backend.jax.compiled import compiled
    from tf_largebatch.backend.jax.conadv_trainer import ConAdvTrainer
    from tf_largebatch.backend.jax.image_gradient import gradient_of, image_gradient
    from tf_largebatch.backend.jax.pipeline import TrainFunction
else:
    from tf_largebatch.backend.tensorflow import (  # type: ignore[no-redef]
        operations,
        replicas,
        snapshots,
        step_context,
    )
    from tf_largebatch.backend.tensorflow.compiled import compiled
    from tf_largebatch.backend.tensorflow.conadv_trainer import ConAdvTrainer  # type: ignore[assignment]
    from tf_largebatch.backend.tensorflow.image_gradient import gradient_of, image_gradient
    from tf_largebatch.backend.tensorflow.pipeline import TrainFunction  # type: ignore[assignment]

__all__ = [
    "ConAdvTrainer",
    "TrainFunction",
    "compiled",
    "gradient_of",
    "image_gradient",
    "operations",
    "replicas",
    "snapshots",
    "step_context",
]
