"""What the tests of ConAdvModel share: small images, small networks."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers as L

import tf_largebatch as lb

SHAPE, CLASSES = (6, 6, 2), 3


def images(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (size, *SHAPE)).astype(keras.config.floatx()), rng.integers(0, CLASSES, size)


def block(batch_norm=True, **batch_norm_arguments):
    norm = [L.BatchNormalization(momentum=0.5, **batch_norm_arguments)] if batch_norm else []
    return [L.Rescaling(1 / 128, -1), L.Conv2D(4, 3, strides=2), *norm, L.ReLU(), L.Flatten()]


def network(batch_norm=True, dropout=0.0, **batch_norm_arguments):
    keras.utils.set_random_seed(0)
    end = [L.Dropout(dropout, seed=1)] if dropout else []
    stack = [*block(batch_norm, **batch_norm_arguments), *end, L.Dense(CLASSES)]
    return keras.Sequential([keras.Input(SHAPE), *stack], name="net")


def nested():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    tower = keras.Sequential([keras.Input(SHAPE), *block()], name="tower")
    hidden = L.BatchNormalization(name="outer")(tower(inputs))
    return keras.Model(inputs, L.Dense(CLASSES)(hidden), name="net")


@keras.saving.register_keras_serializable(package="conadv_cases")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(name="net")
        # Attributes, since tf.train.Checkpoint finds no layers in lists.
        self.scale, self.conv = L.Rescaling(1 / 128, -1), L.Conv2D(4, 3, strides=2)
        self.norm, self.head = L.BatchNormalization(momentum=0.5), L.Dense(CLASSES)

    def call(self, x, training=None):
        x = self.norm(self.conv(self.scale(x)), training=training)
        return self.head(keras.ops.mean(keras.ops.relu(x), axis=(1, 2)))

    def get_config(self):
        return {}


def subclassed():
    keras.utils.set_random_seed(0)
    return Subclassed()


def conadv(model=None, optimizer=None, loss=None, compile_arguments=None, compiled=None, **arguments):
    """A compiled ConAdvModel.

    Its few steps run eagerly on TensorFlow unless asked for: tracing costs more than they do. On JAX, which compiles
    every operation of an eager step for itself, it is the other way round.
    """
    compiled = keras.backend.backend() == "jax" if compiled is None else compiled
    wrapper = lb.ConAdvModel(network() if model is None else model, **arguments)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_arguments = {"run_eagerly": not compiled, **(compile_arguments or {})}
    wrapper.compile(optimizer or keras.optimizers.SGD(0.05, 0.9), loss, **compile_arguments)
    return wrapper


def number(array):
    """A scalar tensor or variable as a Python number."""
    return keras.ops.convert_to_numpy(array).item()


def weights(model):
    return [v.numpy() for v in model.weights]


def assert_close(a, b, rtol=0.0, atol=0.0):
    for one, other, v in zip(weights(a), weights(b), a.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=v.path)
