"""Backend, devices and seeds of every test; runs before anything imports TensorFlow or Keras."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

# Where JAX is not installed, `import jax` would find the folder tests/jax, and Keras takes it for JAX.
if getattr(importlib.util.find_spec("jax"), "origin", None) is None:

    class WithoutJax:
        """Ends the search for JAX. An entry in sys.modules would have libraries take JAX for imported."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "jax":
                raise ModuleNotFoundError("JAX is not installed", name=name)

    sys.meta_path.insert(0, WithoutJax)

# KERAS_BACKEND=jax runs the tests in tests/jax_paths.txt, which import no TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# The TPU compiler that is installed for tests/tpu makes JAX look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests on JAX spend most of their time compiling. Its compiled programs are kept, as mypy's results are: processes and
# later runs share them. `make clean` removes them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest
from selection import mark_long

# A shell has its background jobs, and what they start, ignore Ctrl-C; some tests send it to programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    import tensorflow as tf


def pytest_configure(config):
    # With pytest-xdist this process hands out tests and runs none: it needs no TensorFlow.
    hands_out = getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    if os.environ["KERAS_BACKEND"] == "tensorflow" and not hands_out:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_long(items)


@pytest.fixture(autouse=True)
def _fresh_keras():
    import keras

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.MirroredStrategy:
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        pytest.skip("JAX has no replicas: one program computes on global arrays")
    import tensorflow as tf

    # One in a process: each strategy numbers its collectives from the start, and TensorFlow refuses a number
    # that comes again with another shape.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
