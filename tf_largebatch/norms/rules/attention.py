"""Attention and AdditiveAttention: their scales, repeated for each example.

MultiHeadAttention and GroupQueryAttention consist of EinsumDense layers and need no rule of their own.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.elementwise import scaled
from tf_largebatch.norms.view import view


def attention(layer: Any, recorder: Recorder, inputs: list[Tensor], **kwargs: Any) -> Any:
    """Scores `scale q.k` or `weight sum tanh(scale (q + k))`, then softmax and the weighted sum of the values."""

    def scores(query: Tensor, key: Tensor) -> Tensor:
        if layer.score_mode == "dot":
            return _times_scalar(recorder, layer.scale, ops.matmul(query, ops.transpose(key, axes=[0, 2, 1])))
        hidden = ops.tanh(_times_scalar(recorder, layer.scale, query[..., :, None, :] + key[..., None, :, :]))
        return _times_scalar(recorder, layer.concat_score_weight, ops.sum(hidden, axis=-1))

    return type(layer).call(view(layer, _calculate_scores=scores), inputs, **kwargs)


def additive_attention(layer: Any, recorder: Recorder, inputs: list[Tensor], **kwargs: Any) -> Any:
    """Scores `sum scale tanh(q + k)`, then softmax and the weighted sum of the values."""

    def scores(query: Tensor, key: Tensor) -> Tensor:
        hidden = ops.tanh(query[..., :, None, :] + key[..., None, :, :])
        if layer.scale is not None:
            hidden = scaled(recorder, layer.scale, hidden)
        return ops.sum(hidden, axis=-1)

    return type(layer).call(view(layer, _calculate_scores=scores), inputs, **kwargs)


def _times_scalar(recorder: Recorder, variable: Any, t: Tensor) -> Tensor:
    return t if variable is None else scaled(recorder, variable, t)
