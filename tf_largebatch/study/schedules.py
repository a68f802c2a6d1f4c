"""Shapes of a learning rate after its warmup, for the arms of a study."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

# Share of the updates in which `constant_then_linear` falls to 0.
LINEAR_END = 0.1
# `sigmoid` falls from 0.993 to 0.007 around the middle of the updates.
SIGMOID_STEEPNESS, SIGMOID_CENTRE = 10.0, 0.5


def _polynomial(p: Any, power: float) -> Any:
    return (1.0 - p) ** power


def _cosine(p: Any, power: float) -> Any:
    del power
    return 0.5 * (1.0 + ops.cos(math.pi * p))


def _constant(p: Any, power: float) -> Any:
    del power
    return ops.ones_like(p)


def _constant_then_linear(p: Any, power: float) -> Any:
    del power
    return ops.minimum(1.0, (1.0 - p) / LINEAR_END)


def _sigmoid(p: Any, power: float) -> Any:
    del power
    return 1.0 / (1.0 + ops.exp(SIGMOID_STEEPNESS * (p - SIGMOID_CENTRE)))


SHAPES: dict[str, Callable[[Any, float], Any]] = {
    "polynomial": _polynomial,
    "cosine": _cosine,
    "constant": _constant,
    "constant_then_linear": _constant_then_linear,
    "sigmoid": _sigmoid,
}


@keras.saving.register_keras_serializable(package="tf_largebatch.study")
class ShapedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warmup to a peak, then a decay of a named shape.

        step < warmup_steps:   peak * (step + 1) / warmup_steps
        otherwise:             peak * shape(p),   p = (step - warmup_steps) / (total_steps - warmup_steps)

    Args:
        peak: Learning rate after the warmup.
        total_steps: Updates of the run.
        warmup_steps: Updates of the warmup, 0 for none.
        shape: A row of `SHAPES`: "polynomial" is `(1 - p)^power`, "cosine" `(1 + cos(pi p)) / 2`, "constant" 1,
            "constant_then_linear" 1 and in the last tenth of the updates a line to 0, "sigmoid"
            `1 / (1 + exp(10 (p - 1/2)))`, the decay that TVLARS has in place of a warmup (arXiv 2309.14053, with its
            alpha 1, its delay half and its lambda ten over the updates).
        power: Power of the polynomial.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int, shape: str, power: float = 1.0) -> None:
        self.peak, self.total_steps, self.warmup_steps = float(peak), int(total_steps), int(warmup_steps)
        self.shape, self.power = shape, float(power)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        p = ops.clip((step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1), 0.0, 1.0)
        decayed = SHAPES[self.shape](p, self.power)
        if not self.warmup_steps:
            return self.peak * decayed
        return self.peak * ops.where(step < self.warmup_steps, (step + 1.0) / self.warmup_steps, decayed)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        names = ("peak", "total_steps", "warmup_steps", "shape", "power")
        return {name: getattr(self, name) for name in names}
