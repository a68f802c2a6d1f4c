"""Tells which kind of device a training step is being traced for: what is cheap differs between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import keras

from tf_largebatch.check import require

Device = Literal["cpu", "gpu", "tpu"]
_DEVICES = ("cpu", "gpu", "tpu")

# A plain global, not a context variable: the replicas' threads of MirroredStrategy must see it too.
_compiling_for: tuple[Device, int] | None = None


def device() -> Device:
    """Returns the kind of device that the step now being traced will run on.

    On TensorFlow that is "tpu" under a `tf.distribute.TPUStrategy`, else "gpu" if TensorFlow sees one, else "cpu"; on
    JAX it is the kind of the default device. Within `compiling_for` it is the kind given there. The forms chosen by it
    differ in cost, not in what they compute.
    """
    if _compiling_for is not None:
        return _compiling_for[0]
    return _of_jax() if keras.backend.backend() == "jax" else _of_tensorflow()


@contextlib.contextmanager
def compiling_for(kind: Device, devices: int = 1) -> Iterator[None]:
    """Traces steps for this kind of device, whatever this machine has: for ahead-of-time compilation.

    Args:
        kind: "cpu", "gpu" or "tpu".
        devices: How many of them share a batch in one program of JAX.

    Raises:
        ValueError: If it is none of them.
    """
    global _compiling_for
    require(kind in _DEVICES, "kind", kind, f"one of {_DEVICES}", "name the kind of device to compile for")
    saved, _compiling_for = _compiling_for, (kind, devices)
    try:
        yield
    finally:
        _compiling_for = saved


def devices_compiled_for() -> int | None:
    """Returns how many devices share a batch within `compiling_for`; None outside of it."""
    return None if _compiling_for is None else _compiling_for[1]


def _of_tensorflow() -> Device:
    import tensorflow as tf

    if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        return "tpu"
    return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"


def _of_jax() -> Device:
    import jax

    kind = jax.default_backend()
    return "gpu" if kind == "gpu" else "tpu" if kind == "tpu" else "cpu"
