"""The processes that train together, on the backend in use."""

import keras

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.processes import ProcessLost, explaining_lost_processes, is_first, leave, whole
else:
    from tf_largebatch.backend.tensorflow.processes import (  # type: ignore[assignment]
        ProcessLost,
        explaining_lost_processes,
        is_first,
        leave,
        whole,
    )

__all__ = ["ProcessLost", "explaining_lost_processes", "is_first", "leave", "whole"]
