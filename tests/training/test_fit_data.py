"""Labels that name no class are refused before the first step; those that the loss does not read are not."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tf_largebatch as lb
from tf_largebatch.training.fit_data import check_labels

SPARSE = "sparse_categorical_crossentropy"
Y = np.array([0, 2, 1, 2])
X = np.ones((4, 2), "float32")
OUTSIDE = r"^y must lie in the 3 classes 0 to 2; received 3 at position 1\.$"
WRONG = np.array([0, 3, 1, 2])


def classifier():
    return keras.Sequential([keras.Input((2,)), L.Dense(3)])


def compiled(model, loss=SPARSE):
    # Nothing is traced: labels are refused before the first step.
    model.compile(lb.CLARS(0.1), loss, run_eagerly=keras.backend.backend() != "jax")
    return model


@pytest.mark.parametrize("loss", [SPARSE, keras.losses.SparseCategoricalCrossentropy()])
@pytest.mark.parametrize("kind", [np.asarray, ops.convert_to_tensor, lambda y: y[:, None]])
def test_labels_outside_the_classes(loss, kind):
    check_labels(classifier(), loss, kind(Y))
    with pytest.raises(ValueError, match=OUTSIDE):
        check_labels(classifier(), loss, kind(WRONG))
    with pytest.raises(ValueError, match="received -1 at position 0"):
        check_labels(classifier(), loss, kind(Y - 1))


def test_one_hot_labels_and_integers_that_meet_the_wrong_loss():
    one_hot = np.eye(3)[Y]
    check_labels(classifier(), "categorical_crossentropy", one_hot)
    with pytest.raises(ValueError, match=r"^y must be integers.*\(4, 3\).*: take CategoricalCrossentropy for one-hot"):
        check_labels(classifier(), SPARSE, one_hot)
    for loss in ("categorical_crossentropy", keras.losses.CategoricalCrossentropy()):
        with pytest.raises(ValueError, match=r"^y must be one number for each of the 3 classes.*received y=\(4,\)"):
            check_labels(classifier(), loss, Y)


def test_one_score_for_integer_labels():
    with pytest.raises(ValueError, match=r"^model must give one score per class.*Dense\(2\)"):
        check_labels(keras.Sequential([keras.Input((2,)), L.Dense(1)]), SPARSE, Y)


def test_labels_that_the_loss_does_not_read():
    check_labels(classifier(), SPARSE, WRONG, np.array([1.0, 0.0, 1.0, 1.0]))
    check_labels(classifier(), keras.losses.SparseCategoricalCrossentropy(ignore_class=3), WRONG)
    check_labels(classifier(), "mse", WRONG)
    check_labels(classifier(), lambda y, y_pred: y_pred, WRONG)
    check_labels(classifier(), SPARSE, None)
    # A mask may hide the labels of a sequence's padding.
    sequences = keras.Sequential([keras.Input((4, 2)), L.Dense(3)])
    check_labels(sequences, SPARSE, WRONG[None])
    check_labels(keras.Sequential([L.Dense(3)]), SPARSE, WRONG)  # its outputs are not known


@pytest.mark.parametrize("named", [False, True])
def test_each_of_several_outputs(named):
    x = keras.Input((2,))
    outputs = {"a": L.Dense(3, name="a")(x), "b": L.Dense(5, name="b")(x)}
    model = keras.Model(x, outputs if named else list(outputs.values()))
    check_labels(model, SPARSE, {"a": Y, "b": WRONG})
    check_labels(model, {"a": "mse", "b": SPARSE}, {"a": WRONG, "b": WRONG})
    for y in ({"a": WRONG, "b": Y}, *([] if named else [[WRONG, Y]])):
        with pytest.raises(ValueError, match=OUTSIDE):
            check_labels(model, {"a": SPARSE, "b": SPARSE}, y)


@pytest.mark.parametrize("wrapper", [lb.LargeBatchModel, lambda model: lb.ConAdvModel(model, value_range=(0, 1))])
def test_fit_refuses_them_before_the_first_step(wrapper):
    model = keras.Sequential([keras.Input((2, 2, 1)), L.Flatten(), L.Dense(3)])
    before = [ops.convert_to_numpy(v) for v in model.variables]
    with pytest.raises(ValueError, match=OUTSIDE):
        compiled(wrapper(model)).fit(np.ones((4, 2, 2, 1), "float32"), WRONG, batch_size=1, verbose=0)
    assert all(np.array_equal(v, ops.convert_to_numpy(now)) for v, now in zip(before, model.variables, strict=True))


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X, WRONG


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX only: on TensorFlow the loss's kernel checks labels")
@pytest.mark.parametrize("data", [Batches, lambda: (batch for batch in [(X, WRONG)])])
def test_the_first_batch_of_a_data_set(data):
    model = classifier()
    with pytest.raises(ValueError, match=OUTSIDE):
        compiled(lb.LargeBatchModel(model)).fit(data(), verbose=0)


def test_a_model_with_a_loss_of_its_own_reads_labels_as_it_likes():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.mean(y_pred)

    x = keras.Input((2,))
    compiled(lb.LargeBatchModel(Own(x, L.Dense(3)(x)))).check_labels(WRONG)
