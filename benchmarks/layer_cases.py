"""The layers of `benchmarks.norms --layers`: one row a kind of layer, at a size that networks use.

A layer's plain step should take 5 to 200 milliseconds on two cores: shorter steps measure the dispatch of operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """A layer and its input.

    Attributes:
        batch: Examples.
        shape: The input's shape without the batch.
        make: Builds the function from the input to the output, of new layers.
        vocabulary: Where the input is integers, how many there are.
    """

    batch: int
    shape: tuple[int, ...]
    make: Callable[[], Callable[[Any], Any]]
    vocabulary: int | None = None


def layer_cases() -> dict[str, LayerCase]:
    """All rows by name."""
    import keras
    from keras import layers as L

    def twice(layer: Any) -> Callable[[Any], Any]:
        return lambda x: layer(layer(x))

    def tied() -> Callable[[Any], Any]:
        table = L.ReversibleEmbedding(8000, 128)
        return lambda ids: table(table(ids), reverse=True)

    def two_texts() -> Callable[[Any], Any]:
        table = L.Embedding(20000, 128)
        return lambda ids: table(ids[:, :128]) + table(ids[:, 128:])

    def attention(layer: Any) -> Callable[[Any], Any]:
        return lambda x: layer(x, x)

    return {
        # Products
        "Dense": LayerCase(2048, (512,), lambda: L.Dense(512)),
        "Dense, positions": LayerCase(32, (256, 256), lambda: L.Dense(256)),
        "Dense, few positions": LayerCase(128, (16, 512), lambda: L.Dense(512)),
        "Dense, used twice": LayerCase(512, (512,), lambda: twice(L.Dense(512))),
        "Dense, positions, used twice": LayerCase(32, (128, 256), lambda: twice(L.Dense(256))),
        "TimeDistributed(Dense)": LayerCase(32, (128, 256), lambda: L.TimeDistributed(L.Dense(256))),
        "EinsumDense": LayerCase(32, (128, 256), lambda: L.EinsumDense("abc,cde->abde", (None, 8, 32), bias_axes="de")),
        # Tables
        "Embedding": LayerCase(256, (64,), lambda: L.Embedding(20000, 128), vocabulary=20000),
        "Embedding, long texts": LayerCase(32, (1024,), lambda: L.Embedding(20000, 128), vocabulary=20000),
        "Embedding, used twice": LayerCase(64, (256,), two_texts, vocabulary=20000),
        "ReversibleEmbedding, tied": LayerCase(16, (32,), tied, vocabulary=8000),
        # Convolutions
        "Conv1D": LayerCase(64, (256, 64), lambda: L.Conv1D(64, 5, padding="same")),
        "Conv1D, long, strided": LayerCase(16, (8000, 1), lambda: L.Conv1D(64, 80, strides=4)),
        "Conv1D, long, strided, 64 channels": LayerCase(16, (2000, 64), lambda: L.Conv1D(64, 10, strides=5)),
        "Conv1D, causal, dilated": LayerCase(32, (512, 32), lambda: L.Conv1D(32, 3, padding="causal", dilation_rate=4)),
        "Conv2D": LayerCase(32, (28, 28, 64), lambda: L.Conv2D(64, 3, padding="same")),
        "Conv2D, dilated": LayerCase(16, (28, 28, 64), lambda: L.Conv2D(64, 3, padding="same", dilation_rate=2)),
        # TensorFlow's own gradient of grouped convolutions takes seconds on a CPU.
        "Conv2D, groups": LayerCase(4, (14, 14, 64), lambda: L.Conv2D(64, 3, padding="same", groups=8)),
        "Conv3D": LayerCase(4, (16, 32, 32, 16), lambda: L.Conv3D(32, 3, padding="same")),
        "Conv3D, strided": LayerCase(4, (16, 56, 56, 3), lambda: L.Conv3D(32, 3, strides=2, padding="same")),
        "Conv1DTranspose": LayerCase(32, (256, 64), lambda: L.Conv1DTranspose(64, 4, strides=2, padding="same")),
        "Conv2DTranspose": LayerCase(32, (16, 16, 128), lambda: L.Conv2DTranspose(64, 4, strides=2, padding="same")),
        "Conv2DTranspose, large map": LayerCase(
            16, (32, 32, 64), lambda: L.Conv2DTranspose(32, 2, strides=2, padding="same")
        ),
        "Conv3DTranspose": LayerCase(4, (8, 16, 16, 32), lambda: L.Conv3DTranspose(16, 2, strides=2)),
        "DepthwiseConv1D": LayerCase(32, (512, 128), lambda: L.DepthwiseConv1D(7, padding="same")),
        "DepthwiseConv2D, 3 x 3": LayerCase(32, (56, 56, 64), lambda: L.DepthwiseConv2D(3, padding="same")),
        "DepthwiseConv2D, 3 x 3, strided": LayerCase(
            32, (56, 56, 64), lambda: L.DepthwiseConv2D(3, strides=2, padding="same")
        ),
        "DepthwiseConv2D, 3 x 3, dilated": LayerCase(
            16, (56, 56, 64), lambda: L.DepthwiseConv2D(3, dilation_rate=2, padding="same")
        ),
        "DepthwiseConv2D, 5 x 5, small map": LayerCase(32, (7, 7, 1152), lambda: L.DepthwiseConv2D(5, padding="same")),
        "DepthwiseConv2D, 7 x 7": LayerCase(16, (14, 14, 384), lambda: L.DepthwiseConv2D(7, padding="same")),
        "SeparableConv1D": LayerCase(32, (512, 64), lambda: L.SeparableConv1D(64, 5, padding="same")),
        "SeparableConv2D": LayerCase(16, (28, 28, 128), lambda: L.SeparableConv2D(128, 3, padding="same")),
        "STFTSpectrogram": LayerCase(
            32, (16000, 1), lambda: L.STFTSpectrogram("log", frame_length=256, frame_step=128)
        ),
        # Recurrent
        "SimpleRNN": LayerCase(64, (64, 128), lambda: L.SimpleRNN(128, return_sequences=True)),
        "LSTM": LayerCase(64, (64, 128), lambda: L.LSTM(128, return_sequences=True)),
        "GRU": LayerCase(64, (64, 128), lambda: L.GRU(128, return_sequences=True)),
        "Bidirectional(LSTM)": LayerCase(32, (64, 128), lambda: L.Bidirectional(L.LSTM(128))),
        "ConvLSTM2D": LayerCase(8, (8, 16, 16, 16), lambda: L.ConvLSTM2D(16, 3, padding="same")),
        # Attention
        "MultiHeadAttention": LayerCase(16, (128, 256), lambda: attention(L.MultiHeadAttention(8, 32))),
        "GroupQueryAttention": LayerCase(16, (128, 256), lambda: attention(L.GroupQueryAttention(32, 8, 2))),
        "Attention": LayerCase(32, (128, 128), lambda: lambda x: L.Attention(use_scale=True)([x, x])),
        "AdditiveAttention": LayerCase(8, (64, 128), lambda: lambda x: L.AdditiveAttention()([x, x])),
        # Normalization and elementwise
        "BatchNormalization": LayerCase(64, (28, 28, 128), lambda: L.BatchNormalization()),
        "LayerNormalization": LayerCase(64, (128, 512), lambda: L.LayerNormalization()),
        "GroupNormalization": LayerCase(64, (28, 28, 64), lambda: L.GroupNormalization(16)),
        "RMSNormalization": LayerCase(64, (128, 512), lambda: L.RMSNormalization()),
        "SpectralNormalization(Conv2D)": LayerCase(
            16, (28, 28, 64), lambda: L.SpectralNormalization(L.Conv2D(64, 3, padding="same"))
        ),
        "PReLU": LayerCase(64, (28, 28, 64), lambda: L.PReLU(shared_axes=[1, 2])),
        "TimeDistributed(Conv2D)": LayerCase(
            4, (8, 28, 28, 32), lambda: L.TimeDistributed(keras.layers.Conv2D(32, 3, padding="same"))
        ),
    }
