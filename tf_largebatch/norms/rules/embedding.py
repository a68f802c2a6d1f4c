"""Embedding: row r of `G_i` is the sum of the output gradients at the positions where example i looks up r."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.rules.dense import refuse_lora
from tf_largebatch.norms.shapes import of_examples, product, static_or_dynamic_shape


@dataclasses.dataclass(frozen=True)
class Lookup:
    """`y = w[ids]`: `ids` [B, ...], `w` [V, P], `y` [B, ..., P]."""

    ids: tf.Tensor
    rows: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, dense, shape [b, V, P]."""
        ids, d = self._flat(d, examples)
        one_hot = tf.one_hot(ids, self.rows, dtype=d.dtype)
        return tf.matmul(one_hot, d, transpose_a=True)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`sum_{t,t'} [id_t = id_t'] d_t . d_t'`: positions with the same row add up before the square."""
        ids, d = self._flat(d, examples)
        d = tf.cast(d, tf.float32)
        same = tf.cast(ids[:, :, tf.newaxis] == ids[:, tf.newaxis, :], tf.float32)
        return tf.maximum(tf.reduce_sum(same * tf.matmul(d, d, transpose_b=True), axis=[1, 2]), 0.0)

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """The ordinary gradient is sparse, which no sum of contributions is."""
        return None

    def _flat(self, d: tf.Tensor, examples: slice) -> tuple[tf.Tensor, tf.Tensor]:
        ids, d = of_examples(self.ids, examples), of_examples(d, examples)
        sizes = static_or_dynamic_shape(d)
        positions = product(sizes[1:-1])
        return (
            tf.reshape(ids, [sizes[0], positions]),
            tf.reshape(d, [sizes[0], positions, sizes[-1]]),
        )


@KERAS.register(keras.layers.Embedding, refuse=refuse_lora)
def embedding(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """`y = W[ids]`."""
    ids = inputs if inputs.dtype in (tf.int32, tf.int64) else tf.cast(inputs, tf.int32)
    y = tf.gather(recorder.value(layer.embeddings), ids)
    y = recorder.record(layer.embeddings, y, Lookup(ids, layer.embeddings.shape[0]))
    return ops.cast(y, layer.compute_dtype)
