"""Random numbers that depend on a seed and the number of the step alone, so that any step can be done again."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from tf_largebatch.core import random_numbers


class Purpose(enum.IntEnum):
    """What random numbers are for: each draws its own."""

    TARGETS = 0
    START = 1
    NOISE = 2
    LAYERS = 3
    AUGMENTATION = 4


def step_seed(seed: int, step: Any, purpose: Purpose, replica: Any = 0, part: Any = 0) -> Any:
    """Returns a seed for stateless random numbers, int32 [2].

    Args:
        seed: The user's.
        step: Number of the training step.
        purpose: What it is for.
        replica: Number of the replica.
        part: Number of the micro-batch, or of the layer.
    """
    mixed: Any = np.array([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], "int32")
    for number in (step, int(purpose), replica, part):
        mixed = random_numbers.fold_in(mixed, number)
    return mixed
