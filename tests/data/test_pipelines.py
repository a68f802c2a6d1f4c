"""The batches of tf.data against those that NumPy makes where TensorFlow is not installed."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import tensorflow_only

from tf_largebatch.core import random_numbers
from tf_largebatch.data import array_pipeline, philox
from tf_largebatch.data.batches import ArrayBatches, with_one_hot_labels
from tf_largebatch.data.standardization import Standardization

tf = pytest.importorskip("tensorflow")
STANDARD = Standardization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 255.0, (12, 12))
RESIZED = Standardization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 255.0, (20, 9))


@pytest.fixture(scope="module")
def tensorflow_pipeline():
    from tf_largebatch.data import tensorflow_pipeline

    return tensorflow_pipeline


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (23, 12, 12, 3), dtype=np.uint8), np.arange(23)


@pytest.mark.parametrize("key", [(0, 0), (3, 7), (2**31 - 1, -12345678901)])
def test_random_numbers_are_those_of_tensorflow(key):
    seed = tf.constant(key, tf.int64)
    for bits, kind in ((64, tf.int64), (32, tf.int32)):
        folded = tf.random.fold_in(seed, tf.constant(5, kind), alg="philox").numpy()
        assert tuple(folded) == philox.fold_in(key, 5, bits)
    for count in (1, 5, 1000):
        integers = tf.random.stateless_uniform([count], seed, maxval=9, dtype=tf.int32, alg="philox")
        np.testing.assert_array_equal(philox.integers(key, count, 9), integers)
        uniform = tf.random.stateless_uniform([count], seed, alg="philox")
        np.testing.assert_array_equal(philox.uniform(key, count), uniform)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed, alg="philox")
        np.testing.assert_array_equal(philox.permutation(key, count), order)


@tensorflow_only
def test_random_numbers_of_a_seed_are_the_same_eagerly_and_in_a_graph():
    def drawn(seed):
        tensors = [random_numbers.split(seed, 3), random_numbers.fold_in(seed, 5)]
        tensors += [random_numbers.uniform((3, 2), seed, dtype) for dtype in ("float32", "float64", "bfloat16")]
        return [*tensors, random_numbers.normal((4,), seed, "float32"), random_numbers.integers((9,), seed, 1, 7)]

    in_a_graph = tf.function(drawn, autograph=False)
    for key in ((0, 0), (3, -7), (2**31 - 1, 5)):
        seed = tf.constant(key, tf.int32)
        for one, other in zip(drawn(seed), in_a_graph(seed), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("standardization", [STANDARD, RESIZED], ids=["same size", "resized"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_batches_are_those_of_tensorflow(tensorflow_pipeline, arrays, augment, standardization):
    arguments = (arrays, 5, 3, 1, 3, augment, standardization)
    expected = list(tensorflow_pipeline.training_batches(*arguments).as_numpy_iterator())
    found = array_pipeline.training_batches(*arguments)
    assert len(found) == len(expected) == 8
    expected += list(tensorflow_pipeline.evaluation_batches(arrays, 10, standardization).as_numpy_iterator())
    found = [*found, *array_pipeline.evaluation_batches(arrays, 10, standardization)]
    assert len(found) == len(expected) == 11
    for (x, y), (images, labels) in zip(found, expected, strict=True):
        assert x.dtype == images.dtype and y.dtype == labels.dtype
        np.testing.assert_array_equal(y, labels)
        np.testing.assert_allclose(x, images, atol=2e-6)


def test_one_hot_labels(tensorflow_pipeline, arrays):
    for pipeline in (tensorflow_pipeline, array_pipeline):
        batches = with_one_hot_labels(pipeline.evaluation_batches(arrays, 23, STANDARD), 23)
        labels = np.asarray(next(iter(batches))[1])
        assert labels.dtype == np.float32
        np.testing.assert_array_equal(labels, np.eye(23))


def test_batches_end():
    batches = ArrayBatches(2, lambda index: (np.zeros(index), np.zeros(index)))
    assert len(list(batches)) == 2
    with pytest.raises(IndexError):
        batches[-1]
