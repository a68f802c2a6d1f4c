"""Learning rates for large batches: scaling rules, gradual warmup, polynomial decay."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch import check
from tf_largebatch.core import defaults


def linear_scaling(base_learning_rate: float, batch_size: int, base_batch_size: int = 256) -> float:
    """Returns a learning rate proportional to the batch size: `base_learning_rate * batch_size / base_batch_size`.

    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677.

    Args:
        base_learning_rate: Learning rate known to work at `base_batch_size`, above 0.
        batch_size: Examples of one update, over all replicas and accumulated micro-batches.
        base_batch_size: Examples of one update for which `base_learning_rate` holds.

    Returns:
        The learning rate for `batch_size`.

    Raises:
        ValueError: If an argument is not above 0, or a batch size no whole number.
    """
    base_learning_rate, batch_size, base_batch_size = _positive(
        base_learning_rate=base_learning_rate, batch_size=batch_size, base_batch_size=base_batch_size
    )
    _whole(batch_size=batch_size, base_batch_size=base_batch_size)
    return base_learning_rate * batch_size / base_batch_size


def sqrt_scaling(base_learning_rate: float, batch_size: int, base_batch_size: int = 256) -> float:
    """Returns a learning rate proportional to the square root of the batch size.

        base_learning_rate * sqrt(batch_size / base_batch_size)

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997.

    Args:
        base_learning_rate: Learning rate known to work at `base_batch_size`, above 0.
        batch_size: Examples of one update, over all replicas and accumulated micro-batches.
        base_batch_size: Examples of one update for which `base_learning_rate` holds.

    Returns:
        The learning rate for `batch_size`.

    Raises:
        ValueError: If an argument is not above 0, or a batch size no whole number.
    """
    base_learning_rate, batch_size, base_batch_size = _positive(
        base_learning_rate=base_learning_rate, batch_size=batch_size, base_batch_size=base_batch_size
    )
    _whole(batch_size=batch_size, base_batch_size=base_batch_size)
    return base_learning_rate * math.sqrt(batch_size / base_batch_size)


@keras.saving.register_keras_serializable(package="tf_largebatch")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Warms up linearly to a peak, then decays polynomially, counting *from the end of the warmup*.

        step < warmup_steps:   warmup_start + (peak - warmup_start) * step / warmup_steps
        otherwise:             end + (peak - end) * (1 - min(p, 1))^power
                               p = (step - warmup_steps) / (total_steps - warmup_steps)

    Hence `peak_learning_rate` is reached exactly at `warmup_steps` and `end_learning_rate` at
    `total_steps`, whatever the warmup, as in the TPU reference code of LARS. (A decay counted from step 0 would never
    reach the peak.)

    A step is one call of the optimizer: with `gradient_accumulation_steps=m` Keras counts micro-batches, m
    to an update. The schedule is computed in float32 whatever `keras.config.floatx()` is.

    Args:
        peak_learning_rate: Learning rate at the end of the warmup, 0 or more.
        total_steps: Steps of the whole training, warmup included.
        warmup_steps: Steps of the warmup, fewer than `total_steps`; 0 for none.
        warmup_start: Learning rate of step 0 if there is a warmup; with 0 that step changes nothing.
        power: Power of the decay, above 0: 1 is a straight line. LARS and CLARS were published with 2.
        end_learning_rate: Learning rate from `total_steps` on, 0 or more.
        name: Name scope of the operations.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> schedule = WarmupPolynomialDecay(peak_learning_rate=8.0, total_steps=100, warmup_steps=10, power=2.0)
        >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 55, 100)]
        [0.0, 4.0, 8.0, 2.0001, 0.0001]
    """

    def __init__(
        self,
        peak_learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
        power: float = defaults.POWER,
        end_learning_rate: float = defaults.END_LEARNING_RATE,
        name: str = "WarmupPolynomialDecay",
    ) -> None:
        super().__init__()
        self.total_steps: int
        self.warmup_steps: int
        self.total_steps, self.power = _positive(total_steps=total_steps, power=power)
        self.peak_learning_rate, self.warmup_steps, self.warmup_start, self.end_learning_rate = _not_negative(
            peak_learning_rate=peak_learning_rate,
            warmup_steps=warmup_steps,
            warmup_start=warmup_start,
            end_learning_rate=end_learning_rate,
        )
        self.total_steps, self.warmup_steps = _whole(total_steps=self.total_steps, warmup_steps=self.warmup_steps)
        check.require(
            self.warmup_steps < self.total_steps,
            "warmup_steps",
            self.warmup_steps,
            f"below total_steps={self.total_steps}, to leave steps for the decay",
        )
        self.name = name
        # PolynomialDecay computes in the dtype of its first argument: a Python float would mean floatx,
        # and float16 counts no further than step 65,504.
        self._decay = keras.optimizers.schedules.PolynomialDecay(
            np.float32(self.peak_learning_rate),
            self.total_steps - self.warmup_steps,
            self.end_learning_rate,
            self.power,
            name=name,
        )

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of `step`.

        Args:
            step: Scalar number of steps taken so far, any integer or floating dtype.

        Returns:
            Scalar float32 tensor.
        """
        step = ops.cast(step, "float32")
        if not self.warmup_steps:
            return self._decay(step)
        # A negative fraction to a fractional power is NaN, and where() would hide that only here.
        decayed = self._decay(ops.maximum(step - self.warmup_steps, 0.0))
        slope = (self.peak_learning_rate - self.warmup_start) / self.warmup_steps
        return ops.where(step < self.warmup_steps, self.warmup_start + slope * step, decayed)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as JSON types."""
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_start": self.warmup_start,
            "power": self.power,
            "end_learning_rate": self.end_learning_rate,
            "name": self.name,
        }


def large_batch_schedule(
    base_learning_rate: float = defaults.PEAK_LEARNING_RATE,
    batch_size: int | None = None,
    base_batch_size: int | None = None,
    *,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float = 0,
    power: float = defaults.POWER,
    end_learning_rate: float = defaults.END_LEARNING_RATE,
) -> WarmupPolynomialDecay:
    """Returns a schedule with warmup and polynomial decay, in epochs, as papers give it.

    Without further arguments it is the recipe for CLARS and LARS (`docs/choosing.md`): the same peak for every batch
    size, no warmup, and a straight line to nearly 0. With the two batch sizes the peak is scaled linearly, as in the
    papers.

    Args:
        base_learning_rate: The peak; with `batch_size`, the learning rate known to work at `base_batch_size`.
        batch_size: Examples of one update, over all replicas and accumulated micro-batches; None for a peak that does
            not depend on it.
        base_batch_size: Examples of one update for which `base_learning_rate` holds; given together with `batch_size`.
        steps_per_epoch: Calls of the optimizer in an epoch (micro-batches, where gradients are accumulated).
        epochs: Epochs of the whole training, warmup included.
        warmup_epochs: Epochs of the warmup; CLARS is meant to train without one.
        power: Power of the decay; the papers have 2.
        end_learning_rate: Learning rate after the last step.

    Returns:
        The schedule; its step counts are rounded to whole steps.

    Raises:
        ValueError: If an argument is outside its range, or one of the batch sizes is given without the other.

    Examples:
        >>> large_batch_schedule(steps_per_epoch=12, epochs=8).total_steps
        96

        As the CLARS paper has it, at a batch of 4,096:

        >>> schedule = large_batch_schedule(0.1, 4096, 128, steps_per_epoch=312, epochs=90, power=2.0)
        >>> schedule.peak_learning_rate, schedule.total_steps
        (3.2, 28080)
    """
    check.require(
        (batch_size is None) == (base_batch_size is None),
        "base_batch_size",
        base_batch_size,
        f"given together with batch_size={batch_size}",
        "leave out both for a learning rate that does not depend on the batch size",
    )
    steps_per_epoch, epochs = _positive(steps_per_epoch=steps_per_epoch, epochs=epochs)
    (warmup_epochs,) = _not_negative(warmup_epochs=warmup_epochs)
    check.require(warmup_epochs < epochs, "warmup_epochs", warmup_epochs, f"below epochs={epochs}")
    (peak,) = _positive(base_learning_rate=base_learning_rate)
    if batch_size is not None and base_batch_size is not None:
        peak = linear_scaling(peak, batch_size, base_batch_size)
    return WarmupPolynomialDecay(
        peak_learning_rate=peak,
        total_steps=round(steps_per_epoch * epochs),
        warmup_steps=round(steps_per_epoch * warmup_epochs),
        power=power,
        end_learning_rate=end_learning_rate,
    )


def _positive(**arguments: Any) -> list[Any]:
    for name, value in arguments.items():
        check.number(name, value, lambda v: 0 < v < math.inf, "a number above 0")
    return [check.plain(value) for value in arguments.values()]


def _whole(**arguments: Any) -> list[int]:
    for name, value in arguments.items():
        check.require(float(value).is_integer(), name, value, "a whole number")
    return [int(value) for value in arguments.values()]


def _not_negative(**arguments: Any) -> list[Any]:
    for name, value in arguments.items():
        check.number(name, value, lambda v: 0 <= v < math.inf, "a number of 0 or more")
    return [check.plain(value) for value in arguments.values()]
