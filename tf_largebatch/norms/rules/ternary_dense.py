"""TernaryDense: `y = beta x K`, where `K` has the signs of the weights or 0 and the weights get the gradient of `K`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops

from tf_largebatch.norms.kernels import matmul
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.dense import MatMul, activate
from tf_largebatch.norms.shapes import Size, of_examples, split_rows, with_positions


@dataclasses.dataclass(frozen=True)
class MeanScaledMatMul:
    """`y = beta a K` with `beta = mean |w|`, and `dK/dw` taken as the identity.

    With `A_i = sum_t a_{i,t} (x) d_{i,t}` over the positions t, and `n` entries of `w`,
    `G_i = beta A_i + <A_i, K> sign(w) / n`.

    Attributes:
        a: [B, ..., D].
        kernel: `K`, [D, P].
        signs: `sign(w)` in float32, [D, P].
        beta: A float32 scalar.
    """

    a: Tensor
    kernel: Tensor
    signs: Tensor
    beta: Tensor

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` in float32, shape [b, D, P]."""
        products = matmul.contributions(*self._by_position(d, examples))
        with_kernel = ops.sum(products * ops.cast(self.kernel, "float32"), axis=(1, 2), keepdims=True)
        return self.beta * products + with_kernel * self.signs / self._entries

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `beta^2 ||A_i||^2 + 2 beta <A_i, K> <A_i, sign(w)> / n + <A_i, K>^2 ||sign(w)||^2 / n^2`.

        The inner products take one product of matrices each, `<A_i, K> = sum_t (a_{i,t} K) . d_{i,t}`.
        """
        a, d = self._by_position(d, examples)
        return self._squares(a, d, matmul.squared_norms(a, d))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where the `A_i` are formed anyway."""
        a, d = self._by_position(d, slice(None))
        found = matmul.norms_and_gradient(a, d)
        if found is None:
            return None
        squares, total = found
        with_kernel = ops.sum(total * ops.cast(self.kernel, "float32"))
        return self._squares(a, d, squares), self.beta * total + with_kernel * self.signs / self._entries

    def over_rows(self, batch: Size, rows: Size) -> MeanScaledMatMul:
        """Returns the contraction in which `rows` rows of `a`, one after the other, are positions of one example."""
        return dataclasses.replace(self, a=split_rows(self.a, batch, rows))

    @classmethod
    def joined(cls, uses: Sequence[MeanScaledMatMul], ds: Sequence[Tensor]) -> tuple[MeanScaledMatMul, Tensor]:
        """Returns the uses of one variable as one use whose positions are those of all, and its `d`."""
        joined, d = MatMul.joined([MatMul(use.a) for use in uses], ds)
        return dataclasses.replace(uses[0], a=joined.a), d

    @property
    def _entries(self) -> int:
        return int(self.kernel.shape[0]) * int(self.kernel.shape[1])

    def _squares(self, a: Tensor, d: Tensor, squares: Tensor) -> Tensor:
        a, d = ops.cast(a, "float32"), ops.cast(d, "float32")
        with_kernel = ops.sum(ops.matmul(a, ops.cast(self.kernel, "float32")) * d, axis=(1, 2)) / self._entries
        with_signs = ops.sum(ops.matmul(a, self.signs) * d, axis=(1, 2))
        nonzero = ops.sum(ops.abs(self.signs))
        total = (
            ops.square(self.beta) * squares
            + 2.0 * self.beta * with_kernel * with_signs
            + nonzero * ops.square(with_kernel)
        )
        return ops.maximum(total, 0.0)  # rounding, where the terms cancel

    def _by_position(self, d: Tensor, examples: slice) -> tuple[Tensor, Tensor]:
        return with_positions(of_examples(self.a, examples)), with_positions(of_examples(d, examples))


def ternary_dense(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = activation(beta x K + b)`, where `K` is `sign(w)` where `|w|` is over the threshold, else 0.

    The gradient of `w` is that of `K`, by the straight-through estimator. Without a threshold of the layer's own it is
    `beta / 2`, and `beta = mean |w|` scales the output and is differentiated too; with one there is no `beta`.
    """
    w = recorder.value(layer.kernel)
    sizes = ops.abs(ops.cast(w, "float32"))
    beta = ops.mean(sizes)
    threshold = 0.5 * beta if layer.threshold is None else layer.threshold
    ternary = ops.sign(w) * ops.cast(ops.greater(sizes, threshold), w.dtype)
    # The sum is rounded in the compute dtype, as Keras rounds it.
    w_cast, ternary = ops.cast(w, layer.compute_dtype), ops.cast(ternary, layer.compute_dtype)
    kernel = w_cast + ops.stop_gradient(ternary - w_cast)
    y = ops.matmul(inputs, kernel)
    if layer.threshold is None:
        y = y * ops.cast(beta, y.dtype)
        signs = ops.sign(ops.cast(w, "float32"))
        held = [ops.stop_gradient(t) for t in (kernel, signs, beta)]
        y = recorder.record(layer.kernel, y, MeanScaledMatMul(inputs, *held))
    else:
        y = recorder.record(layer.kernel, y, MatMul(inputs))
    if layer.bias is not None:
        y = add_bias(recorder, layer.bias, y, layer.bias.shape)
    return activate(layer, y)
