"""Layers that differ from those of Keras 3 in their class alone."""

from __future__ import annotations

from typing import Any

import tf_keras

from tf_largebatch.norms.rules.dense import dense
from tf_largebatch.norms.rules.einsum import einsum_dense, refuse_einsum
from tf_largebatch.norms.rules.elementwise import prelu
from tf_largebatch.norms.rules.embedding import embedding
from tf_largebatch.tf_keras.norms.registry import TF_KERAS


def refuse_sparse_embedding(layer: Any) -> str | None:
    """A sparse output has no gradient that could be split by example."""
    return "sparse=True" if getattr(layer, "sparse", False) else None


TF_KERAS.register(tf_keras.layers.Dense)(dense)
# MultiHeadAttention consists of these and needs no rule of its own.
TF_KERAS.register(tf_keras.layers.EinsumDense, refuse=refuse_einsum)(einsum_dense)
TF_KERAS.register(tf_keras.layers.Embedding, refuse=refuse_sparse_embedding)(embedding)
TF_KERAS.register(tf_keras.layers.PReLU)(prelu)
