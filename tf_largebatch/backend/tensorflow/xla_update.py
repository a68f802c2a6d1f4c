"""Compiles the update of all tensors with XLA, into one program for each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class CompiledPerDevice:
    """Calls a function inside an update context of `tf.distribute`, compiled by XLA once for each device.

    A program may touch the variables of one device only, so every replica needs its own, traced where the
    distributed variables stand for that replica's copies.
    """

    def __init__(self) -> None:
        self._functions: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., None], device: str, key: Any, *tensors: Any) -> None:
        """Calls `function(*tensors)`, compiled.

        Args:
            function: What to compile. Only the first one of a device and key is; the others must do the same.
            device: Name of the device of this update.
            key: What the program depends on besides the tensors' shapes and dtypes, hashable.
            *tensors: Nested tensors and None.
        """
        if (device, key) not in self._functions:
            self._functions[device, key] = tf.function(function, jit_compile=True, autograph=False)
        self._functions[device, key](*tensors)
