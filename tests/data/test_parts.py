"""Parts of batches, and batches filled up: of NumPy and of TensorFlow alike."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_largebatch import data
from tf_largebatch.data import ArrayBatches, tensorflow_is_installed

IMAGES = np.arange(10 * 4, dtype=np.float32).reshape(10, 2, 2, 1)
LABELS = np.arange(10, dtype=np.int32)


def of_arrays(size):
    def batch(index):
        part = slice(index * size, (index + 1) * size)
        return IMAGES[part], LABELS[part]

    return ArrayBatches(-(-10 // size), batch)


def of_tensorflow(size):
    if not tensorflow_is_installed():
        pytest.skip("TensorFlow is not installed")
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(size)


def arrays(batches):
    indexed = [batches[i] for i in range(len(batches))] if isinstance(batches, ArrayBatches) else batches
    return [tuple(np.asarray(t) for t in batch) for batch in indexed]


KINDS = pytest.mark.parametrize("make", [of_arrays, of_tensorflow])


@KINDS
def test_the_parts_make_the_batch(make):
    batches = arrays(make(4))[:2]
    parts = [arrays(data.part(make(4), number, 2))[:2] for number in (0, 1)]
    for batch, first, second in zip(batches, *parts, strict=True):
        for whole, a, b in zip(batch, first, second, strict=True):
            assert len(a) == len(b) == 2
            np.testing.assert_array_equal(np.concatenate([a, b]), whole)
    assert data.part(batches, 0, 1) is batches


@KINDS
@pytest.mark.parametrize("one_hot", [False, True])
def test_means_of_filled_batches_are_those_of_the_examples(make, one_hot):
    batches = data.with_one_hot_labels(make(6), 10) if one_hot else make(6)
    found = arrays(data.filled_up(batches, 3, 10))
    assert [len(batch[0]) for batch in found] == [6, 6] == [len(batch[1]) for batch in found]
    weights = np.concatenate([batch[2] for batch in found])
    np.testing.assert_allclose(weights, [1.2] * 10 + [0.0] * 2)
    # As Keras evaluates.
    loss, accuracy = keras.metrics.Mean(), keras.metrics.Mean()
    for images, _, weight in found:
        losses = images[:, 0, 0, 0]
        loss.update_state((losses * weight).sum() / len(losses), sample_weight=len(losses))
        accuracy.update_state(losses > 20, sample_weight=weight)
    np.testing.assert_allclose(float(loss.result()), IMAGES[:, 0, 0, 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(float(accuracy.result()), (IMAGES[:, 0, 0, 0] > 20).mean(), rtol=1e-6)
