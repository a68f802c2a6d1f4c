"""Sparse and ragged tensors, and TensorFlow's error for what does not fit together."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

INVALID_ARGUMENT: type[Exception] = tf.errors.InvalidArgumentError
REFUSES_COMPOSITE = False


def is_sparse(t: Any) -> bool:
    """Returns whether `t` is a SparseTensor."""
    return isinstance(t, tf.SparseTensor)


def is_composite(t: Any) -> bool:
    """Returns whether `t` is a SparseTensor or a RaggedTensor."""
    return isinstance(t, (tf.SparseTensor, tf.RaggedTensor))


def of_ragged_shape(t: tf.Tensor, like: Any) -> Any:
    """Returns `t` with the rows of `like` where that is a RaggedTensor, its padding cut off; else `t` itself."""
    return tf.RaggedTensor.from_tensor(t, like.nested_row_lengths()) if isinstance(like, tf.RaggedTensor) else t
