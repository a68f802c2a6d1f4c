"""Attention and AdditiveAttention: their scales, repeated for each example.

MultiHeadAttention and GroupQueryAttention consist of EinsumDense layers and need no rule of their own.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.elementwise import scaled
from tf_largebatch.norms.view import view


def attention(layer: Any, recorder: Recorder, inputs: list[tf.Tensor], **kwargs: Any) -> Any:
    """Scores `scale q.k` or `weight sum tanh(scale (q + k))`, then softmax and the weighted sum of the values."""

    def scores(query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        if layer.score_mode == "dot":
            return _times_scalar(recorder, layer.scale, tf.matmul(query, key, transpose_b=True))
        hidden = tf.tanh(
            _times_scalar(recorder, layer.scale, query[..., :, tf.newaxis, :] + key[..., tf.newaxis, :, :])
        )
        return _times_scalar(recorder, layer.concat_score_weight, tf.reduce_sum(hidden, axis=-1))

    return type(layer).call(view(layer, _calculate_scores=scores), inputs, **kwargs)


def additive_attention(layer: Any, recorder: Recorder, inputs: list[tf.Tensor], **kwargs: Any) -> Any:
    """Scores `sum scale tanh(q + k)`, then softmax and the weighted sum of the values."""

    def scores(query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        hidden = tf.tanh(query[..., :, tf.newaxis, :] + key[..., tf.newaxis, :, :])
        if layer.scale is not None:
            hidden = scaled(recorder, layer.scale, hidden)
        return tf.reduce_sum(hidden, axis=-1)

    return type(layer).call(view(layer, _calculate_scores=scores), inputs, **kwargs)


def _times_scalar(recorder: Recorder, variable: Any, t: tf.Tensor) -> tf.Tensor:
    return t if variable is None else scaled(recorder, variable, t)
