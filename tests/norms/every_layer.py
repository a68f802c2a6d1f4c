"""Every layer with trainable variables in a small model, and its norms; as a program it writes them to a file.

KERAS_BACKEND=tensorflow python every_layer.py norms.npz Dense GRU
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from comparing import norms_of
from keras import layers as L

# name -> (input shape without the batch, a model of the layer)
MEASURED = {
    "AdditiveAttention": ((4, 3), lambda x: L.AdditiveAttention()([x, x])),
    "Attention": ((4, 3), lambda x: L.Attention(use_scale=True)([x, x])),
    "BatchNormalization": ((3,), lambda x: L.BatchNormalization()(x)),
    "Bidirectional": ((4, 3), lambda x: L.Bidirectional(L.LSTM(2))(x)),
    "Conv1D": ((4, 3), lambda x: L.Conv1D(2, 2)(x)),
    "Conv1DTranspose": ((4, 3), lambda x: L.Conv1DTranspose(2, 2)(x)),
    "Conv2D": ((4, 4, 3), lambda x: L.Conv2D(2, 2)(x)),
    "Conv2DTranspose": ((4, 4, 3), lambda x: L.Conv2DTranspose(2, 2)(x)),
    "Conv3D": ((4, 4, 4, 1), lambda x: L.Conv3D(2, 2)(x)),
    "Conv3DTranspose": ((2, 2, 2, 1), lambda x: L.Conv3DTranspose(2, 2)(x)),
    "ConvLSTM1D": ((3, 4, 2), lambda x: L.ConvLSTM1D(2, 2)(x)),
    "ConvLSTM2D": ((3, 4, 4, 2), lambda x: L.ConvLSTM2D(2, 2)(x)),
    "ConvLSTM3D": ((2, 3, 3, 3, 1), lambda x: L.ConvLSTM3D(1, 2)(x)),
    "Dense": ((3,), lambda x: L.Dense(2)(x)),
    "DepthwiseConv1D": ((4, 3), lambda x: L.DepthwiseConv1D(2)(x)),
    "DepthwiseConv2D": ((4, 4, 3), lambda x: L.DepthwiseConv2D(2)(x)),
    "EinsumDense": ((4, 3), lambda x: L.EinsumDense("abc,cd->abd", (4, 2), bias_axes="d")(x)),
    "Embedding": ((3,), lambda x: L.Embedding(5, 2)(x)),
    "GRU": ((4, 3), lambda x: L.GRU(2)(x)),
    "GRUCell": ((3,), lambda x: L.GRUCell(3)(x, [x])[0]),
    "GroupNormalization": ((4, 4), lambda x: L.GroupNormalization(2)(x)),
    "GroupedQueryAttention": ((4, 3), lambda x: L.GroupQueryAttention(2, 2, 1)(x, x)),
    "LSTM": ((4, 3), lambda x: L.LSTM(2)(x)),
    "LSTMCell": ((3,), lambda x: L.LSTMCell(3)(x, [x, x])[0]),
    "LayerNormalization": ((4, 3), lambda x: L.LayerNormalization()(x)),
    "MultiHeadAttention": ((4, 3), lambda x: L.MultiHeadAttention(2, 2)(x, x)),
    "PReLU": ((4, 3), lambda x: L.PReLU()(x)),
    "RMSNormalization": ((4, 3), lambda x: L.RMSNormalization()(x)),
    "RNN": ((4, 3), lambda x: L.RNN(L.GRUCell(2))(x)),
    "ReversibleEmbedding": ((3,), lambda x: (lambda e: e(e(x), reverse=True))(L.ReversibleEmbedding(5, 2))),
    "STFTSpectrogram": ((20, 1), lambda x: L.STFTSpectrogram("log", 8, 4)(x)),
    "SeparableConv1D": ((4, 3), lambda x: L.SeparableConv1D(2, 2)(x)),
    "SeparableConv2D": ((4, 4, 3), lambda x: L.SeparableConv2D(2, 2)(x)),
    "SimpleRNN": ((4, 3), lambda x: L.SimpleRNN(2)(x)),
    "SimpleRNNCell": ((3,), lambda x: L.SimpleRNNCell(3)(x, [x])[0]),
    "SpectralNormalization": ((3,), lambda x: L.SpectralNormalization(L.Dense(2))(x)),
    "StackedRNNCells": ((4, 3), lambda x: L.RNN(L.StackedRNNCells([L.LSTMCell(2), L.GRUCell(2)]))(x)),
    "TimeDistributed": ((4, 3), lambda x: L.TimeDistributed(L.Dense(2))(x)),
}
if hasattr(L, "TernaryDense"):  # from Keras 3.16 on
    MEASURED["TernaryDense"] = ((4, 3), lambda x: L.TernaryDense(2)(x))


def norms_of_layer(name: str) -> tuple[keras.Model, list[Any]]:
    """A model of the layer, with the same weights on every backend, and the norms of its variables in their order."""
    shape, build = MEASURED[name]
    ids = "Embedding" in name
    inputs = keras.Input(shape, dtype="int32" if ids else None)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(build(inputs))))
    rng = np.random.default_rng(0)
    for v in model.variables:
        if v.trainable or v.name == "vector_u":
            v.assign(rng.normal(size=v.shape).astype("float32"))
    x = rng.integers(0, 5, (3, *shape)) if ids else rng.normal(size=(3, *shape)).astype("float32")
    found = norms_of(model, x, np.ones((3, 2), "float32"), "mse")
    return model, [keras.ops.convert_to_numpy(found[v.path]) for v in model.trainable_variables]


def run_on(backend: str, file: Path, names: Iterable[str]) -> None:
    """Runs this program on a backend."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, __file__, str(file), *names], env=environment, check=True, timeout=600)


if __name__ == "__main__":
    np.savez(sys.argv[1], **{name: np.stack(norms_of_layer(name)[1]) for name in sys.argv[2:]})
