"""How a step is run on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.trainer import (
        Trainer,
        build_optimizer,
        in_strategy,
        number_of_replicas,
        outside_of_the_step,
        replica_may_be_empty,
        scratch_scope,
        specs_of,
        synchronize,
    )
else:
    from tf_largebatch.backend.tensorflow.trainer import (  # type: ignore[assignment]
        Trainer,
        build_optimizer,
        in_strategy,
        number_of_replicas,
        outside_of_the_step,
        replica_may_be_empty,
        scratch_scope,
        specs_of,
        synchronize,
    )

__all__ = [
    "Trainer",
    "build_optimizer",
    "in_strategy",
    "number_of_replicas",
    "outside_of_the_step",
    "replica_may_be_empty",
    "scratch_scope",
    "specs_of",
    "synchronize",
]
