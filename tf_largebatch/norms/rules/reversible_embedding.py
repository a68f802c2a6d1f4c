"""ReversibleEmbedding: a lookup, or in reverse a product with the (transposed) table."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.rules.dense import MatMul, refuse_lora
from tf_largebatch.norms.rules.embedding import embedding


@dataclasses.dataclass(frozen=True)
class TransposedMatMul:
    """`y = a w^T` with `a` [B, ..., D], `w` [V, D], `y` [B, ..., V]."""

    a: tf.Tensor

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i = sum_t d_{i,t} (x) a_{i,t}`, shape [b, V, D]."""
        return tf.linalg.matrix_transpose(MatMul(self.a).contributions(d, examples))

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Those of the product that is not transposed."""
        return MatMul(self.a).squared_norms(d, examples)

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Those of the product that is not transposed."""
        together = MatMul(self.a).norms_and_gradient(d)
        return None if together is None else (together[0], tf.transpose(together[1]))


@KERAS.register(keras.layers.ReversibleEmbedding, refuse=refuse_lora)
def reversible_embedding(layer: Any, recorder: Recorder, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
    """`y = W[ids]`; in reverse `y = x W^T`, or `x V` with untied weights, softly capped if the layer says so."""
    if not reverse:
        y = embedding(layer, recorder, inputs)
        if layer.mask_zero:
            # The layer's compute_mask returns None and its call sets the mask, so the rule has to.
            y._keras_mask = ops.not_equal(inputs, 0)
        return y
    variable = layer.embeddings if layer.tie_weights else layer.reverse_embeddings
    kernel = recorder.value(variable, layer.reverse_dtype)
    # The layer's variables stay in float32 under mixed precision, to which its product promotes the inputs.
    inputs = ops.cast(inputs, layer.reverse_dtype or keras.backend.result_type(inputs.dtype, kernel.dtype))
    if layer.tie_weights:
        logits = recorder.record(variable, ops.matmul(inputs, ops.transpose(kernel)), TransposedMatMul(inputs))
    else:
        logits = recorder.record(variable, ops.matmul(inputs, kernel), MatMul(inputs))
    cap = layer.logit_soft_cap
    return logits if cap is None else ops.tanh(logits / cap) * cap
