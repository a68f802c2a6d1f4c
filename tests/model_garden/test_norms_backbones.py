"""The norms of Model Garden's backbones, small, against the slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.modeling import classification_model
from official.vision.modeling.backbones import efficientnet, mobilenet, resnet, vit
from selection import long, long_unless
from tf_keras_norm_reference import assert_measured_right, measured

from tf_largebatch.norms import check_supported
from tf_largebatch.tf_keras.norms import TF_KERAS

PIXELS, BATCH = 32, 3
SPECS = tf_keras.layers.InputSpec(shape=[None, PIXELS, PIXELS, 3])
# Dropout and stochastic depth off: the reference runs the layers with variables again, not the random ones.
BACKBONES = {
    "resnet 18": lambda: resnet.ResNet(18, input_specs=SPECS, depth_multiplier=0.125),
    "resnet 50 with everything": lambda: resnet.ResNet(
        50,
        input_specs=SPECS,
        depth_multiplier=0.0625,
        stem_type="v1",
        resnetd_shortcut=True,
        replace_stem_max_pool=True,
        se_ratio=0.25,
        use_sync_bn=True,
        init_stochastic_depth_rate=0.0,
    ),
    "mobilenet v1": lambda: mobilenet.MobileNet("MobileNetV1", 0.25, input_specs=SPECS),
    "mobilenet v2": lambda: mobilenet.MobileNet("MobileNetV2", 0.25, input_specs=SPECS),
    "mobilenet v3": lambda: mobilenet.MobileNet("MobileNetV3Small", 0.25, input_specs=SPECS),
    "efficientnet b0": lambda: efficientnet.EfficientNet("b0", input_specs=SPECS, stochastic_depth_drop_rate=0.0),
    "vit, token": lambda: small_vit(pooler="token", representation_size=6, layer_scale_init_value=0.1),
    "vit, average": lambda: small_vit(pooler="gap", representation_size=0),
    "densenet": lambda: small_densenet(),
}


def small_vit(**arguments):
    return vit.VisionTransformer(
        mlp_dim=16,
        num_heads=2,
        num_layers=2,
        input_specs=SPECS,
        patch_size=8,
        hidden_size=12,
        dropout_rate=0.0,
        **arguments,
    )


def small_densenet():
    """Two blocks of two layers with a transition between them, of plain layers."""
    layers = tf_keras.layers
    inputs = layers.Input((PIXELS, PIXELS, 3))

    def conv(x, filters, size, strides=1):
        x = layers.ReLU()(layers.BatchNormalization()(x))
        return layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)

    x = layers.Conv2D(8, 7, 4, padding="same", use_bias=False)(inputs)
    for block in range(2):
        x = conv(x, 8, 1, 2) if block else x
        for _ in range(2):
            x = layers.Concatenate()([x, conv(conv(x, 16, 1), 4, 3)])
    model = tf_keras.Model(inputs, {"5": x})
    model.output_specs = {"5": x.shape}
    return model


def classifier(name):
    tf_keras.utils.set_random_seed(0)
    backbone = BACKBONES[name]()
    kwargs = {"skip_logits_layer": False}
    return classification_model.ClassificationModel(backbone, 4, input_specs=SPECS, **kwargs)


def batch():
    rng = np.random.default_rng(1)
    return rng.normal(size=(BATCH, PIXELS, PIXELS, 3)).astype("float32"), rng.integers(0, 4, BATCH)


# The others are deep, or made of the blocks in test_norms_model_garden_layers.py.
QUICK = ("resnet 18", "densenet")


@pytest.mark.parametrize("name", long_unless(BACKBONES, QUICK))
def test_norms_of_backbones(name):
    model = classifier(name)
    # Fifty layers deep, with batch statistics of three examples, roundings grow.
    assert_measured_right(model, *batch(), rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["MobileNetV3Large", long("MobileNetV3EdgeTPU"), "MobileNetMultiAVG", long("MobileNetV4ConvSmall")]
)
def test_other_mobilenets_have_rules_for_all_their_layers(name):
    model = mobilenet.MobileNet(name, 0.25, input_specs=SPECS)
    measured_layers = check_supported(model, TF_KERAS)
    assert sum(len(layer.trainable_variables) for layer in measured_layers) == len(model.trainable_variables)


def test_random_layers_are_measured_in_the_same_pass():
    """With dropout and stochastic depth on, the contributions still add up to the gradient of that very pass."""
    model = classification_model.ClassificationModel(
        resnet.ResNet(18, input_specs=SPECS, depth_multiplier=0.125, init_stochastic_depth_rate=0.5),
        4,
        dropout_rate=0.5,
    )
    x, y = batch()
    _, found = measured(model, x, y)
    for squares, gradient in zip(found.squared_norms, found.gradients, strict=True):
        assert float(tf.norm(gradient)) <= float(tf.reduce_sum(tf.sqrt(squares))) * (1 + 1e-4) + 1e-6
