"""Backend, devices and seeds of every test; runs before anything imports TensorFlow or Keras."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.MirroredStrategy:
    # One in a process: each strategy numbers its collectives from the start, and TensorFlow refuses a number
    # that comes again with another shape.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
