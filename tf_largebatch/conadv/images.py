"""Checks of the images that a model is attacked with."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.check import require
from tf_largebatch.core import pgd
from tf_largebatch.keras_internals import layers_within


def as_floating(x: Any) -> Any:
    """Returns images in float32, or in float64 if that is Keras's float type.

    Integers and half precision cannot hold a perturbation of a few units of 1/255.
    """
    return ops.cast(x, "float64" if keras.config.floatx() == "float64" else "float32")


def check_are_images(x: Any) -> None:
    """Checks that the input of a model is one batch of images.

    Raises:
        ValueError: Unless x is one tensor [batch, height, width, channels].
    """
    leaves = keras.tree.flatten(x)
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    if len(leaves) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "x must be one batch of images of shape [batch, height, width, channels]; received shapes "
            f"{', '.join(map(str, shapes)) or 'none'}."
        )


def check_channels(value_range: Any, x: Any) -> None:
    """Checks that a range fits the channels of images.

    Raises:
        ValueError: If value_range has one pair for each of another number of channels than the images' last axis.
    """
    lower, _ = pgd.bounds(value_range)
    channels = x.shape[-1]
    if np.ndim(lower) and channels is not None and len(lower) not in (1, channels):
        raise ValueError(
            f"value_range must have one pair for all channels or one for each of {channels}; received {len(lower)} "
            "pairs."
        )


def check_accepts_floating(model: Any) -> None:
    """Checks that a model takes floating-point images: Keras casts images to the dtype of a model's inputs.

    Raises:
        ValueError: If one of its inputs is of integers, which would truncate every perturbation.
    """
    for part in layers_within(model):
        for tensor in keras.tree.flatten(getattr(part, "inputs", None) or []):
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            require(
                keras.backend.is_float_dtype(dtype),
                "model",
                f"{part.name}, whose inputs are {dtype}",
                "a model of floating-point images: inputs of integers truncate an attack's small changes",
                "make the input keras.Input(shape, dtype='float32')",
            )


def warn_without_gradient(count: int, total: int) -> bool:
    """Warns if the gradient of many images vanished, so that an attack cannot have changed them.

    Args:
        count: Number of images without a gradient.
        total: Number of images.

    Returns:
        Whether it warned: from 5 % of the images on.
    """
    if count < max(1, 0.05 * total):
        return False
    warnings.warn(
        f"The gradient is zero for {count} of {total} images ({100 * count / total:.0f} %): the attack does not change "
        "them, and accuracy under this attack overstates robustness. Let the model return logits and give a loss with "
        "from_logits=True; if it does, look for layers that stop, round or saturate, or compute in float32.",
        stacklevel=3,
    )
    return True


def warn_unless_in_range(x: Any, value_range: Any) -> bool:
    """Warns if images lie outside their range, or in such a small part of it that the range must be wrong.

    Args:
        x: Images, an eager tensor or array, channels last.
        value_range: The range that was declared for them.

    Returns:
        Whether it warned.
    """
    x = ops.convert_to_tensor(x)
    if 0 in x.shape:
        return False
    lower, upper = (np.asarray(bound, "float64") for bound in pgd.bounds(value_range))
    span = upper - lower
    axes = list(range(len(x.shape) - (lower.ndim > 0)))
    smallest, largest = (ops.convert_to_numpy(f(x, axes)).astype("float64") for f in (ops.min, ops.max))
    # Scaled data may be off by the rounding of the scaling.
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
