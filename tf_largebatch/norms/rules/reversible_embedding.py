"""ReversibleEmbedding: a lookup, or in reverse a product with the (transposed) table."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.dense import MatMul, TransposedMatMul
from tf_largebatch.norms.rules.embedding import embedding


def reversible_embedding(layer: Any, recorder: Recorder, inputs: Tensor, reverse: bool = False) -> Tensor:
    """Computes `y = W[ids]`.

    In reverse `y = x W^T`, or `x V` with untied weights, softly capped if the layer says so.
    """
    if not reverse:
        y = embedding(layer, recorder, inputs)
        if layer.mask_zero:
            # The layer's compute_mask returns None and its call sets the mask, so the rule has to.
            keras_internals.set_keras_mask(y, ops.not_equal(inputs, 0))
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
