"""Finding CLARS inside what Model Garden wraps around an optimizer."""

from __future__ import annotations

from typing import Any

from tf_largebatch.tf_keras.keras_internals import averaged_optimizer
from tf_largebatch.tf_keras.optimizers.clars import CLARS


def clars_of(optimizer: Any) -> CLARS | None:
    """Returns the CLARS inside `LossScaleOptimizer` and `ExponentialMovingAverage`, or None if there is none.

    Args:
        optimizer: Any optimizer, as `Task.create_optimizer` returns it.
    """
    while optimizer is not None and not isinstance(optimizer, CLARS):
        inner = getattr(optimizer, "inner_optimizer", None)  # LossScaleOptimizer
        optimizer = averaged_optimizer(optimizer) if inner is None else inner
    return optimizer
