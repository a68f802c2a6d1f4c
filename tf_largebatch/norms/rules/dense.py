"""Dense: `y = x W`, so `G_i = sum_t x_{i,t} (x) d_{i,t}` over the positions t of example i."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops

from tf_largebatch.norms.composite import is_sparse
from tf_largebatch.norms.kernels import matmul
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.sparse_dense import SparseMatMul
from tf_largebatch.norms.shapes import Size, of_examples, split_rows, with_positions


@dataclasses.dataclass(frozen=True)
class MatMul:
    """`y = a w` with `a` [B, ..., D], `w` [D, P], `y` [B, ..., P]."""

    a: Tensor

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i = sum_t a_{i,t} (x) d_{i,t}` in float32, shape [b, D, P]."""
        return matmul.contributions(*self._by_position(d, examples))

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||a||^2 ||d||^2` for one position; for several, by the Gram form where it takes fewer products."""
        return matmul.squared_norms(*self._by_position(d, examples))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Several positions, directly: the contributions add up to the gradient."""
        return matmul.norms_and_gradient(*self._by_position(d, slice(None)))

    def over_rows(self, batch: Size, rows: Size) -> MatMul:
        """Returns the contraction in which `rows` rows of `a`, one after the other, are positions of one example."""
        return MatMul(split_rows(self.a, batch, rows))

    @classmethod
    def joined(cls, uses: Sequence[MatMul], ds: Sequence[Tensor]) -> tuple[MatMul, Tensor]:
        """Returns the uses of one variable as one use whose positions are those of all, and its `d`."""
        a = ops.concatenate([with_positions(ops.cast(use.a, "float32")) for use in uses], axis=1)
        return cls(a), ops.concatenate([with_positions(ops.cast(d, "float32")) for d in ds], axis=1)

    def _by_position(self, d: Tensor, examples: slice) -> tuple[Tensor, Tensor]:
        return with_positions(of_examples(self.a, examples)), with_positions(of_examples(d, examples))


@dataclasses.dataclass(frozen=True)
class TransposedMatMul:
    """`y = a w^T` with `a` [B, ..., D], `w` [V, D], `y` [B, ..., V]: a `MatMul` in which `a` and `d` change places."""

    a: Tensor

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i = sum_t d_{i,t} (x) a_{i,t}` in float32, shape [b, V, D]."""
        return MatMul(d).contributions(self.a, examples)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """By the form that takes fewer products."""
        return MatMul(d).squared_norms(self.a, examples)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Several positions, directly: the contributions add up to the gradient."""
        return MatMul(d).norms_and_gradient(self.a)

    def over_rows(self, batch: Size, rows: Size) -> TransposedMatMul:
        """Returns the contraction in which `rows` rows of `a`, one after the other, are positions of one example."""
        return TransposedMatMul(split_rows(self.a, batch, rows))

    @classmethod
    def joined(cls, uses: Sequence[TransposedMatMul], ds: Sequence[Tensor]) -> tuple[TransposedMatMul, Tensor]:
        """Returns the uses of one variable as one use whose positions are those of all, and its `d`."""
        joined, d = MatMul.joined([MatMul(use.a) for use in uses], ds)
        return cls(joined.a), d


def activate(layer: Any, y: Tensor) -> Tensor:
    """Returns the layer's activation, which may be None."""
    return y if layer.activation is None else layer.activation(y)


def refuse_lora(layer: Any) -> str | None:
    """LoRA's kernel is a product of other variables."""
    return "LoRA is enabled" if getattr(layer, "lora_enabled", False) else None


def dense(layer: Any, recorder: Recorder, inputs: Tensor, training: bool | None = None) -> Tensor:
    """Computes `y = activation(x W + b)`; `x` may be a SparseTensor."""
    contraction = SparseMatMul(inputs) if is_sparse(inputs) else MatMul(inputs)
    y = recorder.record(layer.kernel, ops.matmul(inputs, recorder.value(layer.kernel)), contraction)
    if layer.bias is not None:
        y = add_bias(recorder, layer.bias, y, layer.bias.shape)
    return activate(layer, y)
