"""Contributions are formed and summed in float32: gradients of a large batch under mixed_float16 against float32."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import dense, dtype_of, norm_of
from keras import layers as L
from keras import ops
from selection import long_unless

from tf_largebatch.norms import KERAS, measure

BATCH = 16384


def attention(layer):
    return lambda x: layer([x, x])


CASES = {
    "dense": lambda: L.Dense(4),
    "einsum": lambda: L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"),
    "time distributed": lambda: L.TimeDistributed(L.Dense(4)),
    "lstm": lambda: L.LSTM(3),
    "gru": lambda: L.GRU(3),
    "gru, reset before": lambda: L.GRU(3, reset_after=False),
    "attention": lambda: attention(L.Attention(use_scale=True, score_mode="concat")),
    "additive attention": lambda: attention(L.AdditiveAttention()),
    "heads": lambda: lambda x: L.MultiHeadAttention(1, 2)(x, x),
    "prelu": lambda: lambda x: L.PReLU("ones", shared_axes=[1])(-x),
    "layer norm": lambda: L.LayerNormalization(),
    "rms norm": lambda: L.RMSNormalization(),
    "batch norm": lambda: L.BatchNormalization(),
}


def gradients(dtype, case, x):
    """Gradients of the sum of the outputs, of weights that are the same in both dtypes, and the examples' norms."""
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, L.Activation("linear", dtype="float32")(CASES[case]()(inputs)))
    _, found = measure(model, lambda: model(x, training=True), weighted, model.trainable_variables, len(x), KERAS)
    return model.trainable_variables, [ops.convert_to_numpy(dense(g)) for g in found.gradients], found


def weighted(y):
    """A loss whose gradients do not cancel, other than for normalized outputs, whose sum is constant."""
    return ops.sum(ops.cast(y, "float32") * ops.arange(1.0, 1.0 + y.shape[-1]))


QUICK = ("einsum", "gru, reset before", "attention", "prelu", "layer norm", "batch norm")


@pytest.mark.parametrize("case", long_unless(CASES, QUICK))
def test_sums_over_many_examples(case):
    x = np.random.default_rng(0).uniform(0.2, 1.0, size=(BATCH, 4, 3)).astype("float32")
    variables, expected, _ = gradients("float32", case, x)
    _, found, measurement = gradients("mixed_float16", case, x)
    scale = max(norm_of(e) for e in expected)
    for v, f, e, squares in zip(variables, found, expected, measurement.squared_norms, strict=True):
        assert f.dtype == np.float32
        assert dtype_of(squares) == "float32"
        # The roundings of 2^-11 of 16,384 terms average out; sums in float16 would be wrong by 0.06 to infinity.
        assert norm_of(f - e) < 2e-3 * norm_of(e) + 1e-4 * scale, v.path
