"""Sparse and ragged inputs: measured exactly where Keras trains on them, else refused in one sentence.

TensorFlow only: on JAX every sparse input is refused (tests/jax/test_sparse_arrays.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from paper_settings import paper

import tf_largebatch as lb
from tf_largebatch.norms import brute_force_gradient_norms, use_generic

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WIDTH = 9


def _bags(seed: int, rows: int = 10) -> np.ndarray:
    """Bags of words: a few entries a row, and one row without any."""
    rng = np.random.default_rng(seed)
    bags = ((rng.random((rows, WIDTH)) < 0.3) * rng.normal(size=(rows, WIDTH))).astype("float32")
    bags[2] = 0
    return bags


def _model(layers: Callable[[], list[Any]], sparse: bool = True, dtype: str = "float32") -> keras.Model:
    """A model of these layers and a head, of the same weights at every call."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((WIDTH,), sparse=sparse, dtype=dtype)
    h = inputs
    for layer in (*layers(), keras.layers.Dense(3)):
        h = layer(h)
    return keras.Model(inputs, h)


def _hidden() -> list[Any]:
    return [keras.layers.Dense(4, activation="tanh")]


def _table() -> list[Any]:
    return [keras.layers.Embedding(12, 3), keras.layers.Flatten()]


def _norms(model: Any, x: Any, y: Any) -> np.ndarray:
    return np.stack([v.numpy() for v in lb.per_example_gradient_norms(model, x, y, LOSS).values()])


def _labels(rows: int = 10) -> tf.Tensor:
    return tf.constant(np.random.default_rng(7).integers(0, 3, rows))


def test_dense_on_sparse_inputs_is_measured_as_on_dense_ones() -> None:
    x, y = _bags(0), _labels()
    expected = _norms(_model(_hidden, sparse=False), x, y)
    sparse = tf.sparse.from_dense(x)
    model = _model(_hidden)
    np.testing.assert_allclose(_norms(model, sparse, y), expected, rtol=1e-5, atol=1e-7)
    brute = brute_force_gradient_norms(model, sparse, y, LOSS)
    np.testing.assert_allclose(np.stack([v.numpy() for v in brute.values()]), expected, rtol=1e-5, atol=1e-7)


def test_entries_at_one_place_add_up() -> None:
    x, y = _bags(0), _labels()
    once = tf.sparse.from_dense(x)
    twice = tf.SparseTensor(tf.repeat(once.indices, 2, axis=0), tf.repeat(once.values, 2), once.dense_shape)
    expected = _norms(_model(_hidden, sparse=False), 2 * x, y)
    np.testing.assert_allclose(_norms(_model(_hidden), twice, y), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("second", ["sparse", "dense"])
def test_a_shared_layer_adds_its_uses(second: str) -> None:
    xs, y = (_bags(0), _bags(1)), _labels()
    sparse = [True, second == "sparse"]

    def model(sparse: list[bool]) -> Any:
        keras.utils.set_random_seed(0)
        a, b = (keras.Input((WIDTH,), sparse=s) for s in sparse)
        (shared,) = _hidden()
        return keras.Model([a, b], keras.layers.Dense(3)(shared(a) + shared(b)))

    given = [tf.sparse.from_dense(x) if s else tf.constant(x) for x, s in zip(xs, sparse, strict=True)]
    expected = _norms(model([False, False]), list(xs), y)
    np.testing.assert_allclose(_norms(model(sparse), given, y), expected, rtol=1e-5, atol=1e-7)


def test_sparse_ids_of_an_embedding() -> None:
    ids, y = np.abs(np.trunc(3 * _bags(0))).astype("int32"), _labels()
    expected = _norms(_model(_table, sparse=False, dtype="int32"), ids, y)
    found = _norms(_model(_table, dtype="int32"), tf.sparse.from_dense(ids), y)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"norm_examples": 3}, {"micro_batch_size": 3}], ids=str)
def test_fit_on_sparse_inputs_trains_as_on_dense_ones(settings: dict[str, int]) -> None:
    x, y = _bags(0), _labels()
    weights = []
    for sparse in (True, False):
        model = _model(_hidden, sparse=sparse)
        wrapper = lb.LargeBatchModel(model, **settings)
        wrapper.compile(paper(lb.CLARS, 0.1), LOSS, jit_compile=False)
        given = tf.sparse.from_dense(x) if sparse else x
        wrapper.fit(tf.data.Dataset.from_tensor_slices((given, y)).batch(6), verbose=0)  # 6 and 4 examples
        weights.append([v.numpy() for v in model.weights])
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def _texts() -> tf.RaggedTensor:
    rng = np.random.default_rng(3)
    return tf.ragged.constant([rng.integers(-2, 12, n).tolist() for n in (3, 1, 7, 2, 4, 4, 1, 6, 2, 5)])


def _text_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32", ragged=True)
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(12, 3)(ids))
    return keras.Model(ids, keras.layers.Dense(3)(h))


def test_ragged_ids_of_an_embedding() -> None:
    model, x, y = _text_model(), _texts(), _labels()
    alone = [_gradient_norms(model, x[i : i + 1], y[i : i + 1]) for i in range(10)]
    expected = np.transpose(alone)
    np.testing.assert_allclose(_norms(model, x, y), expected, rtol=1e-5, atol=1e-7)
    brute = brute_force_gradient_norms(model, x, y, LOSS)
    np.testing.assert_allclose(np.stack([v.numpy() for v in brute.values()]), expected, rtol=1e-5, atol=1e-7)


def _gradient_norms(model: Any, x: Any, y: Any) -> list[float]:
    with tf.GradientTape() as tape:
        value = LOSS(y, model(x, training=True))
    gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
    return [float(tf.norm(tf.convert_to_tensor(g))) for g in gradients]


@pytest.mark.long
def test_fit_on_ragged_inputs_in_micro_batches_trains_as_in_whole_batches() -> None:
    weights = []
    for size in (None, 4):
        model = _text_model()
        wrapper = lb.LargeBatchModel(model, micro_batch_size=size)
        wrapper.compile(paper(lb.CLARS, 0.1), LOSS, jit_compile=False)
        wrapper.fit(tf.data.Dataset.from_tensor_slices((_texts(), _labels())).batch(6), verbose=0)
        weights.append([v.numpy() for v in model.weights])
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_gradient_through_ragged_outputs_is_seen() -> None:
    class Penalized(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = keras.layers.Embedding(12, 3), keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            h = self.table(x)
            with tf.GradientTape() as tape:
                tape.watch(h.flat_values)
                value = tf.reduce_sum(self.head(tf.reduce_mean(h, axis=1)) ** 2)
            return self.head(tf.reduce_mean(h, axis=1)) + tf.reduce_sum(tape.gradient(value, h.flat_values) ** 2)

    model, x = Penalized(), _texts()
    model(x)
    with pytest.raises(ValueError, match=r"Per-example gradient norms are not available.*derivative"):
        lb.per_example_gradient_norms(model, x, _labels(), LOSS)


def test_what_cannot_be_measured_is_refused_in_one_sentence() -> None:
    x, y = tf.sparse.from_dense(_bags(0)), _labels()
    model = _model(lambda: [use_generic(layer) for layer in _hidden()])
    with pytest.raises(ValueError, match=r"received a SparseTensor of shape .* Pass it a dense tensor"):
        lb.per_example_gradient_norms(model, x, y, LOSS)
    text = _text_model()
    use_generic(text.layers[1])
    with pytest.raises(ValueError, match=r"received a RaggedTensor of shape .* Pass it a dense tensor"):
        lb.per_example_gradient_norms(text, _texts(), y, LOSS)
