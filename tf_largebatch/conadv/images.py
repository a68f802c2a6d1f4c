"""Checks of the images that a model is to be attacked with."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch.core import pgd


def as_floating(x: Any) -> tf.Tensor:
    """Images in float32, or in float64 if that is Keras's float type.

    Integers and half precision cannot hold a perturbation of a pixel or two.
    """
    return tf.cast(x, "float64" if keras.config.floatx() == "float64" else "float32")


def check_are_images(x: Any) -> None:
    """Raises:
    ValueError: unless x is one tensor [batch, height, width, channels].
    """
    leaves = keras.tree.flatten(x)
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    if len(leaves) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "x must be one batch of images of shape [batch, height, width, channels], got "
            f"{', '.join(map(str, shapes)) or 'nothing'}."
        )


def check_channels(value_range: Any, x: Any) -> None:
    """Raises:
    ValueError: if value_range has one pair per channel and the images, channels last, another number of channels.
    """
    lower, _ = pgd.bounds(value_range)
    channels = x.shape[-1]
    if np.ndim(lower) and channels is not None and len(lower) not in (1, channels):
        raise ValueError(
            f"value_range must have one pair for all channels or one for each of {channels}, got {len(lower)} pairs."
        )


def warn_unless_in_range(x: Any, value_range: Any) -> bool:
    """Warns if images lie outside their range, or in such a small part of it that it must be another's.

    Args:
        x: images, an eager tensor or array, channels last.
        value_range: the range that was declared for them.

    Returns:
        Whether it warned.
    """
    x = tf.convert_to_tensor(x)
    if not tf.size(x):
        return False
    lower, upper = (np.asarray(bound, "float64") for bound in pgd.bounds(value_range))
    span = upper - lower
    axes = list(range(x.shape.rank - (lower.ndim > 0)))
    smallest, largest = (f(x, axes).numpy().astype("float64") for f in (tf.reduce_min, tf.reduce_max))
    # Scaled data may be off by their rounding.
    if np.any(smallest < lower - 1e-3 * span) or np.any(largest > upper + 1e-3 * span):
        problem = "does not contain the data, and adversarial images are clipped to it"
    elif np.all(largest - smallest < 0.02 * span) and np.any(largest > smallest):
        problem = "is far wider than the data, and epsilon is measured by it"
    else:
        return False
    warnings.warn(
        f"value_range={value_range!r} {problem}: the first batch lies in ({_short(smallest)}, {_short(largest)}). Give "
        "the range of valid inputs after all scaling.",
        stacklevel=2,
    )
    return True


def _short(values: Any) -> str:
    return np.array2string(np.asarray(values), precision=4, separator=", ")
