"""Norms that the rate of CLARS can divide by in a study: the mean, the root mean square, and an unbiased signal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from tf_largebatch.core import noise_scale
from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.norms.shapes import Size
from tf_largebatch.optimizers import CLARS, update_kernels
from tf_largebatch.training import LargeBatchModel
from tf_largebatch.training.step import Measuring, Pass

MEAN, ROOT_MEAN_SQUARE, SIGNAL = "mean", "root_mean_square", "signal"
DENOMINATORS = (MEAN, ROOT_MEAN_SQUARE, SIGNAL)
# Of the squared norm of the batch's gradient.
SIGNAL_FLOOR = 0.1


class RootMeanSquareModel(LargeBatchModel):
    """Hands `sqrt((1/B) sum_i ||g_i||^2)` to the optimizer in place of CLARS's `s = (1/B) sum_i ||g_i||`."""

    def _measuring(self, batch_size: Size, size: Size | None) -> Measuring | None:
        measuring = super()._measuring(batch_size, size)
        return None if measuring is None else dataclasses.replace(measuring, mean_squares=True)

    def _apply(self, result: Pass) -> None:
        assert result.norms is not None  # it is measured for CLARS
        norms = GradientNorms(ops.sqrt(result.mean_squares), result.norms.known)
        super()._apply(dataclasses.replace(result, norms=norms))


class SignalCLARS(CLARS):
    """CLARS whose norm of the batch's gradient is freed of the noise that the average over the batch leaves in it.

        rate    = eta ||w|| / (signal^((1 - q) / 2) * S^(q / 2) + epsilon)             q = norm_exponent
        signal  = max(||g||^2 - (S - ||g||^2) / (B - 1), floor * ||g||^2)
        S       = (1/B) sum_i ||g_i||^2

    Without the floor `signal` is an unbiased estimate of the squared norm of the expected gradient; it may be negative.
    `RootMeanSquareModel` measures `sqrt(S)`. For studies: it is not saved.

    Args:
        *arguments: Those of CLARS.
        batch_size: B.
        signal_floor: The floor, from 0 to 1.
        **named: Those of CLARS.
    """

    def __init__(self, *arguments: Any, batch_size: int, signal_floor: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._batch_size, self._signal_floor = batch_size, signal_floor

    @property
    def reads_per_example_norms(self) -> bool:
        """True: with q = 0 the signal needs them too."""
        return True

    def measured_denominator(self, norm: Any, gradient: Any) -> Any:
        """Returns `signal^((1 - q) / 2) * S^(q / 2)`; `norm` is `sqrt(S)`."""
        squared = ops.square(update_kernels.l2_norm(gradient))
        signal, _ = noise_scale.estimates(ops.square(norm), squared, self._batch_size)
        signal = ops.maximum(signal, self._signal_floor * squared)
        return signal ** (0.5 * (1.0 - self.norm_exponent)) * norm**self.norm_exponent


def denominator_of(point: Mapping[str, Any]) -> str:
    """Returns the row of `DENOMINATORS` that a point names."""
    return str(point.get("denominator", MEAN))


def cap_of(point: Mapping[str, Any], name: str) -> float | None:
    """Returns a cap of a point; None where it has none, or `none`."""
    cap = point.get(name)
    return None if cap in (None, "none") else float(cap)


def make_clars(point: Mapping[str, Any], batch_size: int) -> Callable[..., CLARS]:
    """Returns the constructor of the CLARS of a point, without the arguments that all layer-wise optimizers have."""
    arguments = {
        "gradient_norms": "per_example",
        "norm_exponent": point.get("norm_exponent", 1.0),
        "max_agreement": cap_of(point, "max_agreement"),  # the paper's CLARS unless a study says otherwise
    }
    if denominator_of(point) != SIGNAL:
        return functools.partial(CLARS, **arguments)
    floor = point.get("signal_floor", SIGNAL_FLOOR)
    return functools.partial(SignalCLARS, batch_size=batch_size, signal_floor=floor, **arguments)


def wrapper(point: Mapping[str, Any]) -> type[LargeBatchModel]:
    """Returns the model that measures what the CLARS of a point divides by."""
    return LargeBatchModel if denominator_of(point) == MEAN else RootMeanSquareModel
