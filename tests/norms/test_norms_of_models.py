"""Whole models: every trainable tensor of them against the slow reference.

In float64, because batch normalization over three examples of one position each amplifies rounding a thousandfold;
ConvNeXt, which has none and is large, in float32.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, ON_JAX, assert_norms_close, norms_of
from keras import layers as L
from selection import long_unless

from tf_largebatch import models
from tf_largebatch.norms import brute_force_gradient_norms, use_generic

BATCH, CLASSES = 3, 4


def application(name, **kwargs):
    return lambda: getattr(keras.applications, name)(
        weights=None, classes=CLASSES, input_shape=(32, 32, 3), classifier_activation=None, **kwargs
    )


class Positions(L.Layer):
    """A class token before the patches and an embedding of all positions, as a transformer for images has them."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.positions = self.add_weight(shape=(1, shape[1] + 1, shape[-1]), name="positions")

    def call(self, x):
        token = keras.ops.broadcast_to(self.token, (keras.ops.shape(x)[0], 1, x.shape[-1]))
        return keras.ops.concatenate([token, x], axis=1) + self.positions


def vision_transformer():
    inputs = keras.Input((32, 32, 3))
    x = L.Reshape((16, 12))(L.Conv2D(12, 8, strides=8)(inputs))
    x = use_generic(Positions())(x)
    for _ in range(2):
        normed = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(3, 4, dropout=0.1)(normed, normed)
        hidden = L.Dense(24, activation="gelu")(L.LayerNormalization()(x))
        x = x + L.Dropout(0.1)(L.Dense(12)(hidden))
    return keras.Model(inputs, L.Dense(CLASSES)(L.LayerNormalization()(x)[:, 0]))


def language_model():
    ids = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 8, mask_zero=True)(ids)
    x = L.Bidirectional(L.LSTM(5, return_sequences=True))(x)
    x = L.LSTM(6)(L.Dropout(0.2)(x))
    return keras.Model(ids, L.Dense(CLASSES)(x))


def decoder():
    ids = keras.Input((6,), dtype="int32")
    table = L.ReversibleEmbedding(CLASSES, 8)
    x = table(ids)
    for _ in range(2):
        normed = L.RMSNormalization()(x)
        x = x + L.GroupQueryAttention(4, 4, 2)(normed, normed, use_causal_mask=True)
        normed = L.RMSNormalization()(x)
        x = x + L.Dense(8, use_bias=False)(L.Dense(12, activation="silu")(normed) * L.Dense(12)(normed))
    return keras.Model(ids, table(L.RMSNormalization()(x)[:, -1], reverse=True))


def generator():
    """From noise to an image, then judged by a spectrally normalized critic."""
    noise = keras.Input((10,))
    x = L.Reshape((4, 4, 6))(L.Dense(96)(noise))
    for filters in (8, 3):
        x = L.PReLU(shared_axes=[1, 2])(L.BatchNormalization()(x))
        x = L.Conv2DTranspose(filters, 4, strides=2, padding="same")(x)
    x = L.LeakyReLU()(L.SpectralNormalization(L.Conv2D(8, 3, strides=2))(x))
    return keras.Model(noise, L.SpectralNormalization(L.Dense(CLASSES))(L.Flatten()(x)))


MODELS = {
    "vision transformer": vision_transformer,
    "language model": language_model,
    "decoder": decoder,
    "generator": generator,
    "VGG11": lambda: models.build("vgg11", (32, 32, 3), CLASSES),
    "MobileNetV2": application("MobileNetV2", alpha=0.35),
    "ConvNeXtTiny": application("ConvNeXtTiny"),
    "ResNet50": application("ResNet50"),
    "ResNet50V2": application("ResNet50V2"),
    "DenseNet121": application("DenseNet121"),
    "MobileNetV3Small": application("MobileNetV3Small"),
    "EfficientNetB0": application("EfficientNetB0"),
    "EfficientNetV2B0": application("EfficientNetV2B0"),
}


# The others are deep: tracing them takes ten seconds and more each, and on JAX the reference takes minutes.
QUICK = ("vision transformer", "generator")


@pytest.fixture
def float64():
    """JAX computes in float64 only where a setting of its own asks for it."""
    if not ON_JAX:
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", QUICK if ON_JAX else long_unless(MODELS, QUICK))
def test_every_tensor_of_a_model(name):
    keras.config.set_dtype_policy("float32" if name == "ConvNeXtTiny" else "float64")
    model = MODELS[name]()
    randomize_scales(model)
    x, y = random_batch(model, BATCH)
    found = norms_of(model, x, y)
    assert set(found) == {v.path for v in model.trainable_variables}
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY, examples=[0, 2])
    assert_norms_close({path: np.asarray(norms)[[0, 2]] for path, norms in found.items()}, expected)
    # A residual branch that stochastic depth drops has no gradient.
    assert np.mean([np.max(norms) > 0 for norms in expected.values()]) > 0.9


def randomize_scales(model):
    """Moves scales and biases off their initial ones and zeros; kernels stay, lest deep models saturate."""
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        if len(v.shape) == 1:
            v.assign(v + 0.1 * rng.normal(size=v.shape))


def random_batch(model, size):
    """Images, noise or tokens, whichever the model takes, and labels."""
    rng = np.random.default_rng(1)
    shape = (size, *model.input_shape[1:])
    ids = model.inputs[0].dtype == "int32"
    return rng.integers(1, CLASSES, shape) if ids else rng.normal(size=shape), rng.integers(0, CLASSES, size)
