"""The range of inputs that a model's first layers tell."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import SHAPE, images, subclassed
from keras import layers as L

import tf_largebatch as lb
from tf_largebatch.conadv.input_range import inferred_range

STATISTICS = {"mean": [124.0, 116.0], "variance": [58.0**2, 57.0**2]}
PIXELS, UNIT, SIGNED = [0.0, 255.0], [0.0, 1.0], [-1.0, 1.0]


def adapted():
    layer = L.Normalization()
    layer.adapt(images(20)[0])
    return layer


@pytest.mark.parametrize(
    "first, expected",
    [
        (lambda: L.Rescaling(1 / 255), PIXELS),
        (lambda: L.Rescaling(1 / 127.5, offset=-1), PIXELS),
        (lambda: L.Rescaling(1 / 128, offset=-1.0), PIXELS),
        (lambda: L.Rescaling([1 / 255, 1 / 256], [0.0, 0.0]), PIXELS),
        (lambda: L.Rescaling(1 / 58.0, -124 / 58.0), PIXELS),
        (lambda: L.Rescaling(1 / 0.25, -0.48 / 0.25), UNIT),
        (lambda: L.Rescaling(2.0, -1.0), UNIT),
        (lambda: L.Rescaling(255.0), UNIT),
        (lambda: L.Rescaling(127.5, 127.5), SIGNED),
        (lambda: L.Normalization(**STATISTICS), PIXELS),
        (lambda: L.Normalization(mean=0.48, variance=0.25**2), UNIT),
        (lambda: L.Normalization(mean=-0.03, variance=0.5**2), SIGNED),
        (adapted, PIXELS),
        # These tell nothing, and the default is that of pixels.
        (lambda: L.Normalization(), PIXELS),
        (lambda: L.Normalization(mean=-200.0, variance=500.0**2), PIXELS),
        (lambda: L.Rescaling(1.0), PIXELS),
        (lambda: L.Rescaling(1 / 127.5), PIXELS),
    ],
)
def test_what_a_first_layer_tells(first, expected):
    inner = keras.Sequential([keras.Input(SHAPE), L.RandomFlip(), first(), L.Flatten(), L.Dense(1)])
    inputs = keras.Input(SHAPE)
    outer = keras.Model(inputs, inner(L.ZeroPadding2D(0)(inputs)))
    for model in (inner, outer, lb.LargeBatchModel(outer)):
        assert inferred_range(model) == expected


def test_inputs_of_several_layers_and_subclassed_models_tell_nothing():
    inputs = keras.Input(SHAPE)
    two = keras.Model(inputs, L.Add()([L.Rescaling(2.0, -1.0)(inputs), inputs]))
    assert inferred_range(two) == inferred_range(subclassed()) == PIXELS


def test_the_range_that_is_passed_wins_and_the_inferred_one_is_kept():
    net = keras.Sequential([keras.Input(SHAPE), L.Rescaling(2.0, -1.0), L.Flatten(), L.Dense(3)])
    assert lb.ConAdvModel(net, value_range=(0, 2)).value_range == [0.0, 2.0]
    config = lb.ConAdvModel(net).get_config()
    assert config["value_range"] == UNIT
    net.compile(loss="mse")
    data = [(images(4)[0], np.zeros((4, 3), "float32"))]
    with pytest.warns(UserWarning, match=r"value_range=\[0.0, 1.0\] does not contain the data"):
        lb.metrics_under_attack(net, data, epsilon=0.0)
