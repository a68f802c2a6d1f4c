"""Targets and weights that do not fit the examples or the classes are refused; those that Keras ignores are not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from tf_largebatch.norms.targets import check_classes, check_lengths

SPARSE = keras.losses.SparseCategoricalCrossentropy()
SCORES = np.zeros((2, 3), "float32")


@pytest.mark.parametrize("loss", [SPARSE, keras.losses.sparse_categorical_crossentropy])
@pytest.mark.parametrize("kind", [np.asarray, ops.convert_to_tensor])
def test_labels_outside_the_classes(loss, kind):
    check_classes(loss, kind([0, 2]), SCORES)
    with pytest.raises(ValueError, match=r"^y must lie in the 3 classes 0 to 2; received 3 at position 1\.$"):
        check_classes(loss, kind([[0], [3]]), SCORES)
    with pytest.raises(ValueError, match="received -1 at position 0"):
        check_classes(loss, kind([-1, 3]), SCORES)


def test_labels_that_are_not_read_as_classes():
    check_classes(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), np.array([-1, 2]), SCORES)
    check_classes(SPARSE, np.array([-1, 2]), SCORES, np.array([0.0, 1.0]))
    # The classes are on another axis than the last.
    check_classes(keras.losses.SparseCategoricalCrossentropy(axis=1), np.full((2, 1), 2), np.zeros((2, 3, 1)))
    check_classes(keras.losses.MeanSquaredError(), np.array([-1, 7]), SCORES)
    check_classes(keras.losses.CategoricalCrossentropy(), np.eye(3)[:2], SCORES)


def test_lengths():
    check_lengths(2, x={"a": SCORES, "b": None}, y=np.zeros(2), sample_weight=None)
    check_lengths(2, y=[SCORES, np.zeros((2, 5))], sample_weight=0.5)
    for value, shape in ((np.zeros(3), r"\(3,\)"), ([1.0, 2.0, 3.0], r"\(3,\)"), ({"a": SCORES[:1]}, r"\(1, 3\)")):
        with pytest.raises(ValueError, match=f"^y must be one entry for each of the 2 examples; received y={shape}"):
            check_lengths(2, y=value)
