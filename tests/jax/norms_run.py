"""Norms and gradients of small models with given weights: a script for TensorFlow, and a module for JAX."""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers as L
from keras import ops

from tf_largebatch.norms import KERAS, measure

BATCH = 6


def convolutional():
    """Convolutions with batch normalization, one of them separable, and a residual."""
    inputs = keras.Input((8, 8, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(inputs)))
    y = L.BatchNormalization()(L.SeparableConv2D(6, 3, padding="same")(x))
    x = L.Add()([x, L.PReLU(shared_axes=[1, 2])(y)])
    x = L.DepthwiseConv2D(3, depth_multiplier=2)(x)
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(L.GroupNormalization(4)(x))))


def recurrent():
    """A masked embedding, an LSTM in both directions, and cells one upon another."""
    ids = keras.Input((7,), dtype="int32")
    x = L.Embedding(9, 5, mask_zero=True)(ids)
    x = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
    x = L.RNN([L.GRUCell(4, reset_after=False), L.SimpleRNNCell(5)], return_sequences=True)(x)
    return keras.Model(ids, L.Dense(3)(L.GRU(4)(x)))


def attentive():
    """Self-attention with layer normalization, as in a transformer."""
    inputs = keras.Input((5, 8))
    x = L.LayerNormalization()(inputs)
    x = L.Add()([inputs, L.MultiHeadAttention(2, 4)(x, x)])
    y = L.TimeDistributed(L.Dense(12, activation="gelu"))(L.RMSNormalization()(x))
    x = L.Add()([x, L.EinsumDense("btf,fd->btd", (None, 8), bias_axes="d")(y)])
    return keras.Model(inputs, L.Dense(3)(x[:, 0]))


def tied():
    """A table of embeddings that is the last layer's kernel, too."""
    ids = keras.Input((7,), dtype="int32")
    table = L.ReversibleEmbedding(9, 6)
    x = L.Dense(6, activation="tanh")(table(ids))
    return keras.Model(ids, table(L.GlobalAveragePooling1D()(x), reverse=True))


MODELS = {"convolutional": convolutional, "recurrent": recurrent, "attentive": attentive, "tied": tied}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def norms_and_gradients(name: str) -> dict[str, np.ndarray]:
    """For each variable its gradient and the norms of the examples' contributions; also what the model assigns."""
    model = MODELS[name]()
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(rng.normal(scale=0.5, size=v.shape).astype("float32") + (1.0 if "gamma" in v.path else 0.0))
    shape = model.input_shape[1:]
    if "int" in model.inputs[0].dtype:
        x = rng.integers(0, 9, (BATCH, *shape)).astype("int32")
    else:
        x = rng.normal(size=(BATCH, *shape)).astype("float32")
    y = rng.integers(0, 3, BATCH)

    def measured():
        _, found = measure(
            model,
            lambda: model(x, training=True),
            lambda y_pred: CROSS_ENTROPY(y, y_pred),
            model.trainable_variables,
            BATCH,
            KERAS,
        )
        return found.gradients, found.squared_norms

    found = {}
    for i, (g, squares) in enumerate(zip(*compiled(measured), strict=True)):
        found[f"{name}, gradient {i}"] = ops.convert_to_numpy(g)
        found[f"{name}, norms {i}"] = np.sqrt(ops.convert_to_numpy(squares))
    moving = [v for v in model.non_trainable_variables if "moving" in v.path]
    found.update((f"{name}, state {i}", v.numpy()) for i, v in enumerate(moving))
    return found


def compiled(function):
    """What a function without arguments returns, compiled on JAX, where single operations take long to compile."""
    if keras.backend.backend() != "jax":
        return function()
    import jax

    from tf_largebatch.backend.jax.scopes import assign, inner_scope

    assigned = []

    def stateless():
        with inner_scope() as scope:
            results = function()
        assigned[:] = scope.assigned
        return results, scope.changes()

    results, changes = jax.jit(stateless)()
    assign(assigned, changes)
    return results


if __name__ == "__main__":
    np.savez(sys.argv[1], **{key: value for name in MODELS for key, value in norms_and_gradients(name).items()})
