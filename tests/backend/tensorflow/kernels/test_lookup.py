"""Norms of per-example sums of rows, against sums in NumPy, float64.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import chunks, lookup

ROWS, POSITIONS, WIDTH = 40, 16, 5
RNG = np.random.default_rng(0)


def squared_norms(ids, d, rows=ROWS):
    """Each example's `||G_i||^2` from the dense `G_i`; ids outside the table take no part."""
    result = []
    for ids_i, d_i in zip(ids, d, strict=True):
        contribution = np.zeros((rows, d.shape[2]))
        inside = (ids_i >= 0) & (ids_i < rows)
        np.add.at(contribution, ids_i[inside], d_i[inside].astype("float64"))
        result.append(np.sum(contribution**2))
    return np.array(result)


def example(batch, positions=POSITIONS, ids=None):
    ids = RNG.integers(0, ROWS, (batch, positions)) if ids is None else ids
    return np.asarray(ids, "int32"), RNG.normal(size=(batch, positions, WIDTH)).astype("float32") + 0.5


def distinct(batch):
    return np.stack([RNG.permutation(ROWS)[:POSITIONS] for _ in range(batch)])


def one_pair(batch):
    ids = distinct(batch)
    ids[0, 3] = ids[0, 9]
    return ids


# How many of the positions are repeated decides the size of the arrays in which they are added.
IDS = {
    "distinct": distinct,
    "one pair": one_pair,
    "some repeated": lambda batch: RNG.integers(0, ROWS, (batch, POSITIONS)),
    "most repeated": lambda batch: RNG.integers(0, 6, (batch, POSITIONS)),
    "all the same": lambda batch: np.full((batch, POSITIONS), 3),
    "one example's all the same": lambda batch: np.where(np.arange(batch)[:, None] == 1, 7, distinct(batch)),
    "padded": lambda batch: np.where(np.arange(POSITIONS) < 9, distinct(batch), 0),
    "outside the table": lambda batch: RNG.integers(-20, ROWS + 20, (batch, POSITIONS)) // 2 * 2,
    "all outside the table": lambda batch: np.full((batch, POSITIONS), ROWS),
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("budget", [None, 3 * 4 * POSITIONS * WIDTH])
def test_ids(ids, budget, monkeypatch):
    if budget:
        monkeypatch.setattr(chunks, "CHUNK_BYTES", budget)
    ids, d = example(8, ids=IDS[ids](8))
    np.testing.assert_allclose(
        lookup.squared_norms(tf.constant(ids), tf.constant(d), ROWS), squared_norms(ids, d), 1e-5
    )
    wide = tf.constant(ids, tf.int64)
    np.testing.assert_allclose(lookup.squared_norms(wide, tf.constant(d), ROWS), squared_norms(ids, d), 1e-5)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("positions", [0, 1, 2, 3, 17])
def test_sizes(batch, positions):
    ids, d = example(batch, positions)
    found = lookup.squared_norms(tf.constant(ids), tf.constant(d), ROWS)
    assert found.shape == (batch,)
    np.testing.assert_allclose(found, squared_norms(ids, d), 1e-5)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("positions", "budget"), [(POSITIONS, None), (POSITIONS, 3 * 4 * POSITIONS * WIDTH), (None, None)]
)
@pytest.mark.parametrize("xla", [False, True])
def test_batches_unknown_when_traced(positions, budget, xla, monkeypatch):
    if budget:
        monkeypatch.setattr(chunks, "CHUNK_BYTES", budget)
    compiled = tf.function(
        lambda ids, d: lookup.squared_norms(ids, d, ROWS),
        input_signature=[tf.TensorSpec([None, positions], tf.int32), tf.TensorSpec([None, positions, WIDTH])],
        jit_compile=xla,
        autograph=False,
    )
    if positions is None:
        np.testing.assert_array_equal(compiled(*example(2, 0)), [0.0, 0.0])
    for batch, kind in ((7, "some repeated"), (3, "most repeated"), (1, "all the same"), (0, "distinct")):
        ids, d = example(batch, ids=IDS[kind](batch).reshape(batch, POSITIONS) if batch else np.zeros((0, POSITIONS)))
        np.testing.assert_allclose(compiled(ids, d), squared_norms(ids, d), 1e-5)


def test_half_precision_is_summed_in_float32():
    """In float16 a sum of 4096 ones stops at 2048, and its square overflows."""
    ids, d = tf.zeros([2, 4096], tf.int32), tf.ones([2, 4096, 1], tf.float16)
    np.testing.assert_allclose(lookup.squared_norms(ids, d, 4), [2.0**24] * 2)
