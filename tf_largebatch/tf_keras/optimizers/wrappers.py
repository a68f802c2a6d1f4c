"""What Model Garden wraps around an optimizer, taken off again."""

from __future__ import annotations

from typing import Any

from tf_largebatch.tf_keras.optimizers.clars import CLARS


def clars_of(optimizer: Any) -> CLARS | None:
    """The CLARS inside `LossScaleOptimizer` and `ExponentialMovingAverage`, or None if there is none.

    Args:
        optimizer: any optimizer, as `Task.create_optimizer` returns it.
    """
    while optimizer is not None and not isinstance(optimizer, CLARS):
        inner = getattr(optimizer, "inner_optimizer", None)  # LossScaleOptimizer
        optimizer = getattr(optimizer, "_optimizer", None) if inner is None else inner  # ExponentialMovingAverage
    return optimizer
