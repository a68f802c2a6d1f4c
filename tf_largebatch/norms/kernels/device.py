"""The kind of device a training step is being traced for: what is cheap differs between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import tensorflow as tf

Device = Literal["cpu", "gpu", "tpu"]
_DEVICES = ("cpu", "gpu", "tpu")

# A plain global, not a context variable: the replicas' threads of MirroredStrategy must see it too.
_compiling_for: Device | None = None


def device() -> Device:
    """The kind of device that the step now being traced will run on.

    "tpu" under a `tf.distribute.TPUStrategy`, else "gpu" if TensorFlow sees one, else "cpu". Within `compiling_for`
    what was said there. The forms chosen by it differ in cost, not in what they compute.
    """
    if _compiling_for is not None:
        return _compiling_for
    if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
        return "tpu"
    return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"


@contextlib.contextmanager
def compiling_for(kind: Device) -> Iterator[None]:
    """Within it steps are traced for this kind of device, whatever this machine has: ahead-of-time compilation.

    Args:
        kind: "cpu", "gpu" or "tpu".

    Raises:
        ValueError: if it is none of them.
    """
    global _compiling_for
    if kind not in _DEVICES:
        raise ValueError(f"kind must be one of {_DEVICES}, got kind={kind!r}.")
    saved, _compiling_for = _compiling_for, kind
    try:
        yield
    finally:
        _compiling_for = saved
