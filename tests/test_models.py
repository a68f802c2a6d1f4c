"""The named models: sizes as published, shapes, plain layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from selection import long, long_unless

from tf_largebatch import models

# Trainable parameters for 10 classes of 32 x 32 x 3 images. Published: ResNets 0.27 to 1.7 M (He et al. 2016,
# table 6; the 1x1 shortcuts add 0.003 M), DenseNet-40 1.0 M (Huang et al. 2017, table 2), MobileNetV2 2.24 M
# without its 1000-class layer; VGG-11's convolutions alone 9.22 M.
TRAINABLE = {
    "resnet8": 78_042,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
    "conv4": 8_754,
    "lenet5": 136_886,
    "vgg11": 9_228_362,
    "densenet40": 1_019_722,
    "mobilenetv2": 2_236_682,
}


def trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def all_layers(model):
    return [layer for layer in model.layers if not isinstance(layer, keras.Model)]


def test_every_name_is_tested():
    assert set(TRAINABLE) == set(models.names())


# The others are deeper ones of the same blocks.
QUICK = ("resnet8", "resnet20", "conv4", "lenet5", "vgg11", "densenet40")


@pytest.mark.parametrize("name", long_unless(TRAINABLE, QUICK))
def test_size_output_and_layers(name):
    model = models.build(name, (32, 32, 3), 10)
    assert trainable_parameters(model) == TRAINABLE[name]
    assert model.output_shape == (None, 10)
    for layer in all_layers(model):
        assert type(layer).__module__.startswith("keras.")
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.momentum == 0.9
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            assert layer.use_bias == (name == "lenet5")  # a batch norm has a bias of its own


@pytest.mark.parametrize("name", ["resnet8", "vgg11", long("densenet40"), long("mobilenetv2")])
def test_logits_of_digits_are_finite_and_not_probabilities(name):
    model = models.build(name, (8, 8, 1), 10)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    logits = keras.ops.convert_to_numpy(model(images, training=True))
    assert np.isfinite(logits).all()
    assert np.abs(logits.sum(axis=1) - 1).max() > 1e-3


def test_mixed_precision_computes_in_float16_and_answers_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = models.build("resnet8", (8, 8, 1), 10)
    logits = model(np.zeros((2, 8, 8, 1), "float32"))
    assert model.layers[1].compute_dtype == "float16"
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


@pytest.mark.parametrize("name", ["MobileNetV3Small", long("efficientnet-b0"), long("resnet50")])
def test_keras_applications_by_any_spelling(name):
    model = models.build(name, (64, 64, 3), 7)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    logits = keras.ops.convert_to_numpy(model(images, training=True))
    assert logits.shape == (2, 7)
    assert np.abs(logits.sum(axis=1) - 1).max() > 1e-5
    norms = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and all(layer.momentum == 0.9 for layer in norms)


def test_efficientnet_sees_the_standardized_image():
    model = models.build("efficientnetb0", (32, 32, 3), 10)
    stem = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    before = keras.Model(model.input, stem.input)(images)
    # The stem's padding adds a row and a column of zeros; * 255 / 255 costs rounding.
    np.testing.assert_allclose(before[:, :32, :32], images, rtol=1e-5, atol=1e-6)


def test_mobilenetv2_of_large_images_is_the_one_of_keras_applications():
    assert any(layer.name == "Conv1" for layer in models.build("mobilenetv2", (96, 96, 3), 10).layers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: models.build("resnet21", (8, 8, 1), 10),
            r"model must be one of resnet8, .*resnet50.*'resnet21' \(did",
        ),
        (lambda: models.build("nothing like it", (8, 8, 1), 10), r"model must be one of .*'nothing like it'\."),
        (lambda: models.build("resnet50", (8, 8, 1), 10), r"ResNet50 cannot be built for .*\(8, 8, 1\).*image_size"),
        (lambda: models.resnet(21, (8, 8, 1), 10), "depth must be 6n . 2.*depth=21"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
