"""A tensor that is used several times: contributions are added over the uses, by the cheap form of each kind."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import ON_JAX, dense, norms_of, plain_pass, tensorflow_only
from keras import layers as L
from keras import ops
from selection import long_unless

from tf_largebatch.norms import brute_force_gradient_norms, measure
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.rules.embedding import Lookup

BATCH = 4
RNG = np.random.default_rng(0)
FLOATS = RNG.normal(size=(BATCH, 5, 6)).astype("float32")
IDS = RNG.integers(0, 7, (BATCH, 5))


def dense_of_vectors():
    shared, x = L.Dense(6, activation="tanh"), keras.Input((6,))
    return keras.Model(x, shared(shared(shared(x)))), FLOATS[:, 0]


def dense_of_positions_and_vectors():
    shared, x = L.Dense(6, activation="tanh"), keras.Input((5, 6))
    return keras.Model(x, shared(shared(x)[:, 0])), FLOATS


def two_lookups():
    table, ids = L.Embedding(7, 4), keras.Input((5,), dtype="int32")
    return keras.Model(ids, L.Dense(2)(L.Flatten()(table(ids) * table(6 - ids)))), IDS


def tied_head():
    table, ids = L.ReversibleEmbedding(7, 4), keras.Input((5,), dtype="int32")
    return keras.Model(ids, table(table(ids) + table(6 - ids), reverse=True)), IDS


def convolution_of_two_sizes():
    shared, x = L.Conv1D(6, 2, padding="same"), keras.Input((5, 6))
    return keras.Model(x, shared(L.MaxPooling1D()(shared(x)))), FLOATS


def scale_and_bias():
    shared, x = L.LayerNormalization(), keras.Input((5, 6))
    return keras.Model(x, L.Dense(2)(shared(keras.ops.tanh(shared(x))))), FLOATS


def cell_called_twice():
    cell, x = L.GRUCell(6), keras.Input((5, 6))
    h, _ = cell(x[:, 0], x[:, 1])
    return keras.Model(x, cell(x[:, 2], h)[0]), FLOATS


def two_branches_of_which_one_is_unused():
    shared, x = L.Dense(6), keras.Input((5, 6))
    return keras.Model(x, shared(x) + keras.ops.stop_gradient(shared(x * 2.0))), FLOATS


MODELS = [
    dense_of_vectors,
    dense_of_positions_and_vectors,
    two_lookups,
    tied_head,
    convolution_of_two_sizes,
    scale_and_bias,
    cell_called_twice,
    two_branches_of_which_one_is_unused,
]


@pytest.mark.parametrize("make", long_unless(MODELS, [tied_head], condition=ON_JAX))
def test_norms_and_gradient(make):
    model, x = make()
    for v in model.trainable_variables:
        v.assign(v + 0.3 * RNG.normal(size=v.shape).astype("float32"))
    y = RNG.normal(size=model(x).shape).astype("float32")
    loss = keras.losses.MeanSquaredError()
    found = norms_of(model, x, y, loss)
    expected = brute_force_gradient_norms(model, x, y, loss)
    assert set(found) == {v.path for v in model.trainable_variables}
    for path, norms in expected.items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-5, atol=1e-6, err_msg=path)

    _, measurement = measure(model, lambda: model(x), lambda p: loss(y, p), model.trainable_variables, BATCH, KERAS)
    _, gradients = plain_pass(model, x, lambda p: loss(y, p), training=False)
    for v, g, f in zip(model.trainable_variables, gradients, measurement.gradients, strict=True):
        np.testing.assert_allclose(dense(f), g, rtol=1e-5, atol=1e-6, err_msg=v.path)


@tensorflow_only
def test_the_gradient_of_two_lookups_stays_sparse():
    model, x = two_lookups()
    loss = keras.losses.MeanSquaredError()
    y = np.ones(model(x).shape, "float32")
    _, found = measure(model, lambda: model(x), lambda p: loss(y, p), model.trainable_variables, BATCH, KERAS)
    assert type(found.gradients[0]).__name__ == "IndexedSlices"


def test_ids_outside_the_table_take_no_part():
    ids = ops.convert_to_tensor([[0, 12, 0], [9, 8, -20]])
    d = ops.ones((2, 3, 4), "float32")
    np.testing.assert_allclose(Lookup(ids, 9).squared_norms(d, slice(None)), [16.0, 4.0])
