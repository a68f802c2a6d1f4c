"""Dense: `y = x W`, so `G_i = sum_t x_{i,t} (x) d_{i,t}` over the positions t of example i."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.recorder import Recorder, squared_norms_and_sum, sum_squares_per_example
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.shapes import of_examples, product, static_or_dynamic_shape


@dataclasses.dataclass(frozen=True)
class MatMul:
    """`y = a w` with `a` [B, ..., D], `w` [D, P], `y` [B, ..., P]."""

    a: tf.Tensor

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i = sum_t a_{i,t} (x) d_{i,t}`, shape [b, D, P]."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        return tf.matmul(with_positions(a), with_positions(d), transpose_a=True)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """One position: `||a||^2 ||d||^2`. Several: the Gram form where it takes fewer products, else directly."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        if a.shape.rank == 2:
            return sum_squares_per_example(a) * sum_squares_per_example(d)
        a, d = with_positions(a), with_positions(d)
        if gram_is_cheaper(a.shape[1], a.shape[2], d.shape[2]):
            return gram_squared_norms(a, d)
        return sum_squares_per_example(tf.matmul(a, d, transpose_a=True))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Several positions, directly: the contributions add up to the gradient."""
        a, d = with_positions(self.a), with_positions(d)
        if self.a.shape.rank == 2 or gram_is_cheaper(a.shape[1], a.shape[2], d.shape[2]):
            return None
        return squared_norms_and_sum(tf.matmul(a, d, transpose_a=True))


def with_positions(t: tf.Tensor) -> tf.Tensor:
    """[B, ..., C] as [B, T, C]."""
    sizes = static_or_dynamic_shape(t)
    return tf.reshape(t, [sizes[0], product(sizes[1:-1]), sizes[-1]])


def gram_is_cheaper(positions: int | None, inputs: int, outputs: int) -> bool:
    """Whether the Gram form's `T^2 (D + P)` products are fewer than half of the direct form's `T D P`.

    Half, because the direct form also gives the gradient, which the Gram form leaves to the ordinary kernel.
    """
    return positions is not None and 2 * positions * (inputs + outputs) < inputs * outputs


def gram_squared_norms(a: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """`sum_{t,t'} (a_t . a_t') (d_t . d_t')`, shape [B], from `a` [B, T, D] and `d` [B, T, P].

    In float32: the terms of the sum cancel, so products of half-precision Gram matrices would lose the norm.
    """
    a, d = tf.cast(a, tf.float32), tf.cast(d, tf.float32)
    gram = tf.matmul(a, a, transpose_b=True) * tf.matmul(d, d, transpose_b=True)
    return tf.maximum(tf.reduce_sum(gram, axis=[1, 2]), 0.0)


def activate(layer: Any, y: tf.Tensor) -> tf.Tensor:
    """The layer's activation, which may be None."""
    return y if layer.activation is None else layer.activation(y)


def refuse_lora(layer: Any) -> str | None:
    """LoRA's kernel is a product of other variables."""
    return "LoRA is enabled" if getattr(layer, "lora_enabled", False) else None


@KERAS.register(keras.layers.Dense, refuse=refuse_lora)
def dense(layer: Any, recorder: Recorder, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """`y = activation(x W + b)`."""
    y = recorder.record(layer.kernel, ops.matmul(inputs, recorder.value(layer.kernel)), MatMul(inputs))
    if layer.bias is not None:
        y = add_bias(recorder, layer.bias, y, layer.bias.shape)
    return activate(layer, y)
