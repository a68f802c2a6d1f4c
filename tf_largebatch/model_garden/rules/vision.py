"""Layers of Model Garden's vision backbones: those of its vision transformer, layer scales, multi-query attention."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from official.vision.modeling.backbones.vit import AddPositionEmbs, TokenLayer
from official.vision.modeling.layers.nn_blocks import (
    LayerScale,
    MNV4LayerScale,
    MultiQueryAttentionLayerV1,
    MultiQueryAttentionLayerV2,
)
from official.vision.modeling.layers.nn_layers import Scale

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.einsum import Einsum
from tf_largebatch.tf_keras.norms.registry import TF_KERAS


@TF_KERAS.register(AddPositionEmbs, methods=("call", "_interpolate"))
def add_position_embeddings(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, inputs_positions: Any = None
) -> tf.Tensor:
    """Returns `y_{i,t} = x_{i,t} + e_t`, so `G_i = d_i`.

    For another grid `e` is resized first, repeated for each example.
    """
    embedding = layer.pos_embedding  # [1, positions, width]
    shape = tuple(embedding.shape)
    if inputs.shape[1] == shape[1]:
        y = inputs + tf.cast(recorder.value(embedding), inputs.dtype)
        return recorder.record(embedding, y, Bias(shape, shape))
    repeated = tf.reshape(recorder.per_example(embedding), [-1, *layer.posemb_origin_shape, shape[2]])
    resized = tf.image.resize(repeated, layer.posemb_target_shape)  # [B, *target, width], bilinear as the layer does
    rows, columns = layer.posemb_target_shape
    return inputs + tf.cast(tf.reshape(resized, [-1, rows * columns, shape[2]]), inputs.dtype)


@TF_KERAS.register(TokenLayer)
def class_token(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `y_i = [token, x_i]`, so `G_i = d_{i,0}`."""
    repeated = recorder.per_example(layer.cls, inputs.dtype)  # [B, 1, 1, width]
    return tf.concat([tf.squeeze(repeated, axis=1), inputs], axis=1)


@TF_KERAS.register(LayerScale)
def layer_scale(layer: Any, recorder: Recorder, inputs: tf.Tensor, inputs_positions: Any = None) -> tf.Tensor:
    """Computes `y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return _scaled(recorder, layer.gamma, inputs)


@TF_KERAS.register(MNV4LayerScale)
def mobilenet_layer_scale(layer: Any, recorder: Recorder, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Computes `y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return _scaled(recorder, layer._gamma, x)


@TF_KERAS.register(Scale)
def scalar_scale(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = w x` with a scalar `w`: `G_i = d_i . x_i`."""
    repeated = recorder.per_example(layer._scale, inputs.dtype)
    return tf.reshape(repeated, [-1, *(1,) * (inputs.shape.rank - 1)]) * inputs


@TF_KERAS.register(MultiQueryAttentionLayerV1, methods=("call", "_reshape_input"))
def multi_query_attention_1(
    layer: Any, recorder: Recorder, inputs: tuple[tf.Tensor, tf.Tensor], optimize_einsum: bool = False
) -> tf.Tensor:
    """Four projections, each an einsum with the example's letter kept."""
    del optimize_einsum  # another order of the same products
    return _multi_query_attention(layer, recorder, inputs, "hdk", "hdv", "bhn")


@TF_KERAS.register(MultiQueryAttentionLayerV2, methods=("call", "_reshape_input"))
def multi_query_attention_2(layer: Any, recorder: Recorder, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """As the first version, with the axes of two kernels in another order."""
    return _multi_query_attention(layer, recorder, inputs, "hkd", "dhv", "bnh")


def _multi_query_attention(
    layer: Any, recorder: Recorder, inputs: tuple[tf.Tensor, tf.Tensor], query: str, output: str, heads: str
) -> tf.Tensor:
    """Attention of many query heads to one head of keys and values; b example, n and m positions, h head."""
    x, memory = inputs
    flat, flat_memory = layer._reshape_input(x), layer._reshape_input(memory)

    def projected(variable: Any, a: tf.Tensor, equation: str) -> tf.Tensor:
        y = tf.einsum(equation, a, recorder.value(variable, a.dtype))
        return recorder.record(variable, y, Einsum(a, equation))

    q = projected(layer._query_proj, flat, f"bnd,{query}->{heads}k")
    k = projected(layer._key_proj, flat_memory, "bmd,dk->bmk")
    scores = tf.einsum(f"{heads}k,bmk->{heads}m", q, k) / tf.math.sqrt(tf.cast(layer._key_dim, x.dtype))
    scores = layer._dropout_layer(tf.nn.softmax(scores))
    v = projected(layer._value_proj, flat_memory, "bmd,dv->bmv")
    o = tf.einsum(f"{heads}m,bmv->{heads}v", scores, v)
    y = projected(layer._output_proj, o, f"{heads}v,{output}->bnd")
    return tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape)


def _scaled(recorder: Recorder, gamma: Any, x: tf.Tensor) -> tf.Tensor:
    repeated = recorder.per_example(gamma, x.dtype)
    return x * tf.reshape(repeated, [-1, *(1,) * (x.shape.rank - 2), x.shape[-1]])
