"""The devices that run the present step: on JAX one program computes the whole batch, wherever its parts are."""

from __future__ import annotations

from typing import Any

import keras


def have_parts_of_the_batch() -> bool:
    """Returns whether several devices each hold a part of the batch."""
    distribution = keras.distribution.distribution()
    return distribution is not None and distribution.device_mesh.devices.size > 1


def number_of_this_replica() -> Any:
    """Returns 0: random numbers are drawn for the whole batch."""
    return 0
