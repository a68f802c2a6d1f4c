"""A vision transformer of Keras's own layers, for the benchmarks.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, with global average pooling in place of the class token.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("benchmarks")
class PositionTable(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape: Any) -> None:
        """Makes the table."""
        self.table = layers.Embedding(input_shape[1], input_shape[2])
        self.table.build((input_shape[1],))

    def call(self, x: Any) -> Any:
        """Returns `x + table`."""
        return x + self.table(ops.arange(x.shape[1]))


def vit_s(pixels: int, classes: int) -> keras.Model:
    """ViT-S with patches of 16 px: 22 million parameters."""
    return build(pixels, classes, patch=16, width=384, depth=12, heads=6)


def build(pixels: int, classes: int, patch: int, width: int, depth: int, heads: int) -> keras.Model:
    """A vision transformer that returns logits."""
    inputs = keras.Input((pixels, pixels, 3))
    x = layers.Conv2D(width, patch, strides=patch)(inputs)
    x = PositionTable()(layers.Reshape((-1, width))(x))
    for _ in range(depth):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, layers.Dense(classes)(x))
