"""What ConAdvModel refuses, before any work, and what it warns of."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from conadv_cases import CLASSES, SHAPE, conadv, images, network, weights
from keras import layers as L

import tf_largebatch as lb

pytestmark = pytest.mark.quick_on_jax(
    "test_arguments",
    "test_models_losses_and_data",
    "test_a_model_with_two_outputs",
    "test_a_range_that_is_not_the_datas_is_warned_of_once[outside]",
    "test_a_batch_norm_that_cannot_be_copied_is_named",
)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"epsilon": -1.0}, "epsilon must be a finite number of 0 or more; received epsilon=-1.0"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number"),
        ({"epsilon": "4"}, "epsilon must be a finite number"),
        ({"step_size": -0.5}, "step_size must be a finite number of 0 or more, or None; received step_size=-0.5"),
        ({"num_steps": 0}, "num_steps must be a positive integer; received num_steps=0"),
        ({"num_steps": 1.0}, "num_steps must be a positive integer"),
        ({"staleness": -1}, "staleness must be an integer of 0 or more; received staleness=-1"),
        ({"staleness": 1.0}, "staleness must be an integer of 0 or more; received staleness=1.0"),
        ({"staleness": True}, "staleness must be an integer of 0 or more; received staleness=True"),
        ({"targeted": 1}, "targeted must be True or False"),
        ({"random_start": 1.5}, r"random_start must be a probability in \[0, 1\]; received random_start=1.5"),
        ({"value_range": (1.0, 0.0)}, "value_range must be finite, with lower < upper"),
        ({"value_range": 255}, "value_range must be a pair"),
        ({"adversarial_weight": -1}, "adversarial_weight must be a finite number of 0 or more"),
        ({"augment": "flip"}, "augment must be a Keras layer, another callable or None; received augment='flip'"),
        ({"num_classes": 1}, "num_classes must be an integer of 2 or more, or None; received num_classes=1"),
        ({"attack": "fgsm"}, "attack must be one of 'pgd', 'noise'; received attack='fgsm'"),
        ({"norm": "l1"}, "norm must be one of 'linf', 'l2'; received norm='l1'"),
        ({"seed": 0.5}, "seed must be an integer; received seed=0.5"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a positive integer"),
    ],
)
def test_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        lb.ConAdvModel(network(), **arguments)


def head(units):
    return keras.Sequential([keras.Input(SHAPE), L.Flatten(), L.Dense(units)])


def two_outputs():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, [L.Dense(CLASSES)(L.Flatten()(inputs)) for _ in range(2)])


X, Y = images()


@pytest.mark.parametrize(
    "model, arguments, loss, x, y, words",
    [
        (network, {}, "mse", X, Y, "targeted must be False for a model without one score for each of several classes"),
        (
            network,
            {"targeted": False},
            "mse",
            X,
            np.eye(4)[Y],
            r"y must be labels that fit the losses and .*y=\(12, 4\)",
        ),
        (network, {}, [None], X, Y, "loss must be a loss, which an adversarial attack ascends"),
        (network, {}, "crossentropy", X, Y, "by its full name"),
        (network, {"num_classes": 4}, None, X, Y, "num_classes must be .* 3, or None; received num_classes=4"),
        (lambda: head(1), {}, None, X, Y, r"one score per class.*received output \[\(None, 1\)\]"),
        (network, {}, None, X, np.eye(4)[Y], r"y must hold one of 3 classes for each image.*received shape \(12, 4\)"),
        (network, {"value_range": [(0, 1)] * 3}, None, X, Y, "one pair for all channels or one for each of 2; .* 3"),
        (lambda: keras.Sequential([keras.Input((5,)), L.Dense(3)]), {}, None, X[:, 0, 0, :1], Y, "batch of images"),
    ],
)
def test_models_losses_and_data(model, arguments, loss, x, y, words):
    wrapper = conadv(model(), loss=loss, **arguments)
    before = weights(wrapper)
    if x.ndim == 2:
        x = np.repeat(x, 5, axis=1)
    with pytest.raises(ValueError, match=words):
        wrapper.fit(x, y, verbose=0)
    for a, b in zip(before, weights(wrapper), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_with_two_outputs():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="targeted must be False for a model without one score"):
        conadv(two_outputs(), loss=[loss, loss]).fit(X, [Y, Y], verbose=0)


def test_a_loss_of_ones_own_is_judged_by_its_labels():
    def own(y, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    conadv(loss=own).fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "scale, value_range, words",
    [
        (2.0, (0.0, 255.0), "does not contain the data.*the first batch lies in"),
        (1 / 255, (0.0, 255.0), "far wider than the data"),
        (1.0, [(0, 255), (0, 100)], "does not contain the data"),
    ],
    ids=["outside", "far wider", "of one channel"],
)
def test_a_range_that_is_not_the_datas_is_warned_of_once(scale, value_range, words):
    model = conadv(value_range=value_range)
    with pytest.warns(UserWarning, match=words):
        model.fit(X * scale, Y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(X * scale, Y, verbose=0)


def test_no_warning_for_data_in_range():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        conadv(value_range=(0, 255)).fit(X, Y, verbose=0)
        conadv().fit(X.astype("uint8"), Y, verbose=0)


class Bare(L.BatchNormalization):
    def __init__(self, size):
        super().__init__()
        self.size = size


def test_a_batch_norm_that_cannot_be_copied_is_named():
    net = keras.Sequential([keras.Input(SHAPE), Bare(3), L.Flatten(), L.Dense(CLASSES)])
    with pytest.raises(ValueError, match=r"copy of layer '.*bare', and Bare cannot be made from its get_config"):
        lb.ConAdvModel(net)
