"""Layers of Model Garden's own with variables: those of its vision transformer, and its layer scales."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from official.vision.modeling.backbones.vit import AddPositionEmbs, TokenLayer
from official.vision.modeling.layers.nn_blocks import LayerScale, MNV4LayerScale

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.tf_keras.norms.registry import TF_KERAS


@TF_KERAS.register(AddPositionEmbs, methods=("call", "_interpolate"))
def add_position_embeddings(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, inputs_positions: Any = None
) -> tf.Tensor:
    """`y_{i,t} = x_{i,t} + e_t`, so `G_i = d_i`; for another grid `e` is resized first, copied for each example."""
    embedding = layer.pos_embedding  # [1, positions, width]
    shape = tuple(embedding.shape)
    if inputs.shape[1] == shape[1]:
        y = inputs + tf.cast(recorder.value(embedding), inputs.dtype)
        return recorder.record(embedding, y, Bias(shape, shape))
    copies = tf.reshape(recorder.per_example(embedding), [-1, *layer.posemb_origin_shape, shape[2]])
    resized = tf.image.resize(copies, layer.posemb_target_shape)  # [B, *target, width], bilinear as the layer does
    rows, columns = layer.posemb_target_shape
    return inputs + tf.cast(tf.reshape(resized, [-1, rows * columns, shape[2]]), inputs.dtype)


@TF_KERAS.register(TokenLayer)
def class_token(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """`y_i = [token, x_i]`, so `G_i = d_{i,0}`."""
    copies = recorder.per_example(layer.cls, inputs.dtype)  # [B, 1, 1, width]
    return tf.concat([tf.squeeze(copies, axis=1), inputs], axis=1)


@TF_KERAS.register(LayerScale)
def layer_scale(layer: Any, recorder: Recorder, inputs: tf.Tensor, inputs_positions: Any = None) -> tf.Tensor:
    """`y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return _scaled(recorder, layer.gamma, inputs)


@TF_KERAS.register(MNV4LayerScale)
def mobilenet_layer_scale(layer: Any, recorder: Recorder, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """`y = gamma x`: `G_i = sum_t d_{i,t} x_{i,t}`."""
    return _scaled(recorder, layer._gamma, x)


def _scaled(recorder: Recorder, gamma: Any, x: tf.Tensor) -> tf.Tensor:
    copies = recorder.per_example(gamma, x.dtype)
    return x * tf.reshape(copies, [-1, *(1,) * (x.shape.rank - 2), x.shape[-1]])
