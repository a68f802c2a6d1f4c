"""Attention and AdditiveAttention: their scales, repeated for each example.

MultiHeadAttention and GroupQueryAttention consist of EinsumDense layers and need no rule of their own.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.norms.patched import patched
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.registry import KERAS


@KERAS.register(keras.layers.Attention, methods=("call", "_calculate_scores"))
def attention(layer: Any, recorder: Recorder, inputs: list[tf.Tensor], **kwargs: Any) -> Any:
    """Scores `scale q.k` or `weight sum tanh(scale (q + k))`, then softmax and the weighted sum of the values."""
    rank = inputs[0].shape.rank  # of the scores too; the concatenated scores are a sum over one more axis
    scale_rank = rank + 1 if layer.score_mode == "concat" else rank
    scale = _per_example_scalar(recorder, layer.scale, scale_rank)
    weight = _per_example_scalar(recorder, layer.concat_score_weight, rank)
    with patched(layer, scale=scale, concat_score_weight=weight):
        return type(layer).call(layer, inputs, **kwargs)


@KERAS.register(keras.layers.AdditiveAttention, methods=("call", "_calculate_scores"))
def additive_attention(layer: Any, recorder: Recorder, inputs: list[tf.Tensor], **kwargs: Any) -> Any:
    """Scores `sum scale tanh(q + k)`, then softmax and the weighted sum of the values."""
    scale = recorder.per_example(layer.scale)  # [B, dim]
    scale = tf.reshape(scale, [-1, *(1,) * (inputs[0].shape.rank - 1), scale.shape[-1]])
    with patched(layer, scale=scale):
        return type(layer).call(layer, inputs, **kwargs)


def _per_example_scalar(recorder: Recorder, variable: Any, rank: int) -> tf.Tensor | None:
    return None if variable is None else tf.reshape(recorder.per_example(variable), [-1, *(1,) * (rank - 1)])
