"""What one forward and backward pass gives: the gradient and every example's share of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.norms.shapes import Size


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Gradients of a loss and the norms of the examples' contributions to them, for K variables.

    Attributes:
        gradients: For each variable its gradient, None where the loss does not depend on it.
        squared_norms: For each variable `||G_i||^2` of the measured examples, float32, shape [b]; None where the loss
            does not depend on it.
        measured: How many examples were measured, b.
        batch_size: How many there are, B.
        loss: The loss, before it is scaled.
    """

    gradients: list[Any]
    squared_norms: list[Any]
    measured: Size
    batch_size: Size
    loss: Any = None

    def gradient_norms(self) -> GradientNorms:
        """Returns `(B / b) sum_i ||G_i||` over the measured examples, for each variable: `s_k` of a mean loss.

        Exact when all examples are measured; else the unbiased estimate from a sample of them. 0 for an empty batch.
        """
        return GradientNorms(self._per_measured(self.batch_size) * self._sums(ops.sqrt), self._known)

    def mean_squared_norms(self) -> Any:
        """Returns `(1/B) sum_i ||g_i||^2` with `g_i = B G_i`, estimated from the measured examples, for each variable.

        Of equal parts of a batch it averages as their gradients do. float32, shape [K]; 0 where the loss does not
        depend on the variable, and for an empty batch.
        """
        # B/b for the examples not measured; B^2 / B for the factor 1/B in each G_i.
        return self._per_measured(self.batch_size * self.batch_size) * self._sums(lambda squares: squares)

    @property
    def _known(self) -> tuple[bool, ...]:
        return tuple(squares is not None for squares in self.squared_norms)

    def _sums(self, function: Callable[[Any], Any]) -> Any:
        """Returns the function's sums over the examples, [K], all at once.

        Hundreds of small operations make a large graph.
        """
        known = [squares for squares in self.squared_norms if squares is not None]
        if not known:
            return ops.zeros([len(self.squared_norms)], "float32")
        absent = ops.zeros_like(known[0])
        rows = ops.stack([absent if squares is None else squares for squares in self.squared_norms])
        return ops.sum(function(rows), axis=1)

    def _per_measured(self, number: Size) -> Any:
        """Returns the number divided by how many examples were measured; 0 if none were."""
        if isinstance(number, int) and isinstance(self.measured, int):
            return number / self.measured if self.measured else 0.0
        return ops.divide_no_nan(ops.cast(number, "float32"), ops.cast(self.measured, "float32"))
