"""Layers of Model Garden's text models: embeddings, position tables, masked language modeling, normalizations.

`RelativePositionEmbedding` has no variables, and `TransformerEncoderBlock` none but those of the layers inside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from official.nlp.modeling.layers.masked_lm import MaskedLM
from official.nlp.modeling.layers.mobile_bert_layers import NoNorm
from official.nlp.modeling.layers.on_device_embedding import OnDeviceEmbedding
from official.nlp.modeling.layers.position_embedding import PositionEmbedding, RelativePositionBias
from official.nlp.modeling.layers.transformer_encoder_block import RMSNorm

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.dense import MatMul, activate
from tf_largebatch.norms.rules.embedding import Lookup
from tf_largebatch.norms.rules.reversible_embedding import TransposedMatMul
from tf_largebatch.norms.shapes import of_examples
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example
from tf_largebatch.tf_keras.norms.registry import TF_KERAS


@dataclasses.dataclass(frozen=True)
class Positions:
    """`y = z + w_t` at each position t: `w` [max_length, C], `y` [B, ..., T, ..., C] with T at `axis`."""

    axis: int
    max_length: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `G_i`.

        Row t is the sum of `d` over all axes but t and the last; 0 beyond T. Shape [b, max_length, C].
        """
        d = tf.cast(of_examples(d, examples), tf.float32)
        summed = [axis for axis in range(1, d.shape.rank - 1) if axis != self.axis]
        rows = tf.reduce_sum(d, axis=summed)
        return tf.pad(rows, [[0, 0], [0, self.max_length - tf.shape(rows)[1]], [0, 0]])

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))


@dataclasses.dataclass(frozen=True)
class Buckets:
    """`y_{i,h,q,k} = w[bucket_{q,k}, h]`: `bucket` one-hot [q k, R], `w` [R, H], `y` [B, H, Q, K]."""

    one_hot: tf.Tensor

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Returns `G_i[r, h]`: the sum of `d_{i,h}` over the pairs of positions in bucket r. Shape [b, R, H]."""
        d = tf.cast(of_examples(d, examples), tf.float32)
        flat = tf.reshape(d, [tf.shape(d)[0], d.shape[1], -1])
        return tf.einsum("pr,ihp->irh", self.one_hot, flat)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))


@TF_KERAS.register(OnDeviceEmbedding)
def on_device_embedding(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = factor W[ids]`, by a lookup or by a product with one-hot vectors."""
    table = recorder.value(layer.embeddings)
    if layer._use_one_hot:
        one_hot = tf.one_hot(inputs, layer._vocab_size, dtype=table.dtype)
        y = recorder.record(layer.embeddings, tf.matmul(one_hot, table), MatMul(one_hot))
    else:
        y = recorder.record(layer.embeddings, tf.gather(table, inputs), Lookup(inputs, layer._vocab_size))
    return y * layer._scale_factor if layer._scale_factor else y


@TF_KERAS.register(PositionEmbedding)
def position_embedding(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `y_{i,t} = w_t` for every example and every other axis of the inputs."""
    variable, axis = layer._position_embeddings, layer._seq_axis % inputs.shape.rank
    sizes = tf.shape(inputs)
    rows = recorder.value(variable)[: sizes[axis]]
    rank = inputs.shape.rank
    lengths = {axis: sizes[axis], rank - 1: variable.shape[1]}
    rows = tf.reshape(rows, [lengths.get(i, 1) for i in range(rank)])
    y = tf.ensure_shape(tf.broadcast_to(rows, sizes), inputs.shape)
    return recorder.record(variable, y, Positions(axis, layer._max_length))


@TF_KERAS.register(RelativePositionBias)
def relative_position_bias(layer: Any, recorder: Recorder, query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns `y_{i,h,q,k} = w[bucket_{q,k}, h]`.

    The buckets come from the layer itself, given a table of row numbers.
    """
    variable = layer._relative_attention_bias
    buckets = tf.cast(_bucket_numbers(layer, query, key), tf.int32)
    values = tf.transpose(tf.gather(recorder.value(variable), buckets), [2, 0, 1])
    y = tf.tile(values[tf.newaxis], [tf.shape(query)[0], 1, 1, 1])
    y = tf.ensure_shape(y, [query.shape[0], layer.num_heads, query.shape[1], key.shape[1]])
    one_hot = tf.one_hot(tf.reshape(buckets, [-1]), layer.relative_attention_num_buckets)
    return recorder.record(variable, y, Buckets(one_hot))


def _bucket_numbers(layer: Any, query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns [Q, K]: the layer's own call on one example and a table whose rows hold their own numbers."""
    view = object.__new__(type(layer))
    vars(view).update(vars(layer))
    numbers = tf.range(layer.relative_attention_num_buckets, dtype=tf.float32)
    vars(view)["_relative_attention_bias"] = numbers[:, tf.newaxis]
    return type(layer).call(view, query[:1], key[:1])[0, 0]


@TF_KERAS.register(MaskedLM, methods=("call", "_gather_indexes"), covers=lambda layer: [layer.dense, layer.layer_norm])
def masked_lm(layer: Any, recorder: Recorder, sequence_data: tf.Tensor, masked_positions: tf.Tensor) -> tf.Tensor:
    """Computes `y = norm(activation(x W + b)) E^T + c` at the masked positions, with the embedding table `E`.

    The layer flattens examples and positions into one axis; here they stay apart. A table that an embedding layer uses
    as well is one variable: its contributions are added over both uses.
    """
    dense, norm = layer.dense, layer.layer_norm
    x = tf.cast(tf.gather(sequence_data, masked_positions, batch_dims=1), dense.compute_dtype)
    h = recorder.record(dense.kernel, tf.matmul(x, recorder.value(dense.kernel, x.dtype)), MatMul(x))
    if dense.bias is not None:
        h = add_bias(recorder, dense.bias, h, dense.bias.shape)
    wide = tf.cast(activate(dense, h), tf.float32)
    mean, variance = tf.nn.moments(wide, [2], keepdims=True)
    z = (wide - mean) * tf.math.rsqrt(variance + norm.epsilon)
    gamma, beta = (recorder.per_example(v, tf.float32)[:, tf.newaxis] for v in (norm.gamma, norm.beta))
    h = tf.cast(z * gamma + beta, norm.compute_dtype)
    table = recorder.value(layer.embedding_table, h.dtype)
    logits = recorder.record(layer.embedding_table, tf.matmul(h, table, transpose_b=True), TransposedMatMul(h))
    logits = add_bias(recorder, layer.bias, logits, layer.bias.shape)
    return logits if layer._output_type == "logits" else tf.nn.log_softmax(logits)


@TF_KERAS.register(RMSNorm)
def rms_norm(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = scale z`, `z = x / sqrt(mean x^2 + epsilon)`: `G_i = sum_t d_{i,t} z_{i,t}`."""
    x = tf.cast(inputs, tf.float32)
    z = x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=layer.axis, keepdims=True) + layer.epsilon)
    scale = recorder.per_example(layer.scale, tf.float32)  # [B, 1, ..., C]: the variable has the rank of the inputs
    return tf.cast(z * tf.squeeze(scale, axis=1), inputs.dtype)


@TF_KERAS.register(NoNorm)
def no_norm(layer: Any, recorder: Recorder, feature: tf.Tensor) -> tf.Tensor:
    """Computes `y = scale x + bias`: `G_i = sum_t d_{i,t} x_{i,t}` and `sum_t d_{i,t}`."""
    shape = [-1, *(1,) * (feature.shape.rank - 2), feature.shape[-1]]
    scale, bias = (tf.reshape(recorder.per_example(v, feature.dtype), shape) for v in (layer.scale, layer.bias))
    return feature * scale + bias
