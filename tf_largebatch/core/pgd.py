"""Adversarial images by projected gradient steps: random targets, random starts, steps, projection.

Used by concurrent adversarial learning: Liu, Chen, Cheng, Hsieh, You, "Concurrent Adversarial Learning for
Large-Batch Training", arXiv 2106.00221. The attack is that of Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", arXiv 1706.06083.

Conventions of this module. Images have the examples on axis 0. `epsilon`, `step_size`, `lower` and `upper` are in the
unit of the images (`in_input_units` converts from units of 1/255) and are scalars, arrays [C] with one entry for each
channel (channels last), or anything else that broadcasts against the images' last axes ([C, 1, 1] if channels come
first). `norm` names the ball, see `balls`. A valid image lies in [lower, upper]; this range has precedence over the
ball, so an x outside of it is moved inside. Everything is computed in float32 (float64 for float64 images). Random
numbers depend on `seed` only, an int32 tensor or array [2].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.check import message, require
from tf_largebatch.core import random_numbers
from tf_largebatch.core.balls import ball
from tf_largebatch.core.rates import compute_dtype


def bounds(value_range: Any) -> tuple[Any, Any]:
    """Returns the lower and the upper end of the range of valid inputs.

    Args:
        value_range: `(lower, upper)`, or one such pair for each channel: shape [C, 2].

    Returns:
        Two floats, or two float32 arrays [C].

    Raises:
        ValueError: Unless every pair is of finite numbers with lower < upper.
    """
    try:
        pairs = np.asarray(value_range, "float64")
    except (TypeError, ValueError):
        pairs = np.empty(0)
    is_pairs = pairs.ndim in (1, 2) and pairs.shape[-1] == 2 and pairs.size > 0
    require(is_pairs, "value_range", value_range, "a pair (lower, upper) or one such pair for each channel")
    ordered = bool(np.all(np.isfinite(pairs)) and np.all(pairs[..., 0] < pairs[..., 1]))
    require(ordered, "value_range", value_range, "finite, with lower < upper in every pair")
    if pairs.ndim == 1:
        return float(pairs[0]), float(pairs[1])
    return pairs[:, 0].astype("float32"), pairs[:, 1].astype("float32")


def in_input_units(size: Any, value_range: Any) -> Any:
    """Converts a distance in units of 1/255 of the value range into the unit of the model's inputs.

        size / 255 * (upper - lower)

    Args:
        size: Distance on the scale on which valid images span 0 to 255.
        value_range: `(lower, upper)` of valid inputs after the user's scaling, or one such pair for each channel.

    Returns:
        A scalar, or a float32 array [C].

    Raises:
        ValueError: Unless every pair is of finite numbers with lower < upper.
    """
    lower, upper = bounds(value_range)
    return size / 255.0 * (upper - lower)


def random_wrong_classes(labels: Any, num_classes: int, seed: Any) -> Any:
    """Draws uniformly random classes other than the labels: `(label + r) mod num_classes`, r in 1..num_classes-1.

    Args:
        labels: True classes in [0, num_classes), integers of any dtype and shape, usually [B].
        num_classes: Number of classes, 2 or more.
        seed: int32 [2].

    Returns:
        int32 tensor in the shape of the labels.

    Raises:
        ValueError: If there are fewer than 2 classes.
    """
    require(num_classes >= 2, "num_classes", num_classes, "2 or more for there to be a wrong class")
    labels = ops.cast(labels, "int32")
    return ops.mod(labels + random_numbers.integers(ops.shape(labels), seed, 1, num_classes), num_classes)


def random_start(x: Any, epsilon: Any, lower: Any, upper: Any, probability: float, norm: str, seed: Any) -> Any:
    """Moves each image, with a probability, to a random point of the ball around it, clipped to [lower, upper].

    Args:
        x: Images, floating, [B, ...].
        epsilon: Radius of the ball, 0 or more.
        lower: Smallest valid value.
        upper: Largest valid value.
        probability: In [0, 1], decided for each example separately.
        norm: Name of the ball.
        seed: int32 [2].

    Returns:
        Tensor in the shape and dtype of x.

    Raises:
        ValueError: For an unknown norm or a probability outside [0, 1].
    """
    shape = ball(norm)
    _check_probability("probability", probability)
    x = ops.convert_to_tensor(x)
    dtype = compute_dtype(x.dtype)
    center = ops.cast(x, dtype)
    epsilon, lower, upper = (ops.cast(value, dtype) for value in (epsilon, lower, upper))
    seeds = random_numbers.split(seed, 3)
    point = ops.minimum(ops.maximum(center + epsilon * shape.start(center, seeds[:2]), lower), upper)
    per_example = (ops.shape(x)[0], *[1] * (len(x.shape) - 1))
    chosen = random_numbers.uniform(per_example, seeds[2], dtype) < probability
    return ops.cast(ops.where(chosen, point, center), x.dtype)


def noise(x: Any, epsilon: Any, lower: Any, upper: Any, norm: str, seed: Any) -> Any:
    """Moves each image to a uniformly random point of the ball, clipped: the baseline that an attack must beat.

    Args:
        x: Images, floating, [B, ...].
        epsilon: Radius of the ball, 0 or more.
        lower: Smallest valid value.
        upper: Largest valid value.
        norm: Name of the ball.
        seed: int32 [2].

    Returns:
        Tensor in the shape and dtype of x.

    Raises:
        ValueError: For an unknown norm.
    """
    return random_start(x, epsilon, lower, upper, 1.0, norm, seed)


def step(
    x_adv: Any,
    x: Any,
    gradient: Any,
    step_size: Any,
    epsilon: Any,
    lower: Any,
    upper: Any,
    norm: str,
    descend: bool,
) -> Any:
    """Takes one step along the gradient, then back into the ball and the range.

        x' = x_adv +- step_size * direction(g)                   linf: sign(g);  l2: g / ||g||
        then onto the ball around x, then clip to [lower, upper]

    + ascends and - descends. An image whose gradient is zero stays where it is. The gradient's scale does not matter,
    so a loss scale need not be undone. NaN entries of the gradient count as zero, infinite ones (an overflow of
    float16) as the largest finite number of their sign, so finite images give finite images.

    Args:
        x_adv: Where the images are now, floating, [B, ...].
        x: The clean images, same shape.
        gradient: Gradient of the loss with respect to the images, at `x_adv`, same shape.
        step_size: 0 or more.
        epsilon: Radius of the ball, 0 or more.
        lower: Smallest valid value.
        upper: Largest valid value.
        norm: Name of the ball.
        descend: Whether to decrease the loss (a targeted attack) or to increase it.

    Returns:
        Tensor in the shape and dtype of `x_adv`.

    Raises:
        ValueError: For an unknown norm.
    """
    shape = ball(norm)
    x_adv = ops.convert_to_tensor(x_adv)
    dtype = compute_dtype(x_adv.dtype)
    start, x, gradient = (ops.cast(value, dtype) for value in (x_adv, x, gradient))
    step_size, epsilon, lower, upper = (ops.cast(value, dtype) for value in (step_size, epsilon, lower, upper))
    largest = float(np.finfo(dtype).max)
    gradient = ops.where(ops.isnan(gradient), ops.zeros_like(gradient), gradient)
    gradient = ops.minimum(ops.maximum(gradient, -largest), largest)
    change = step_size * shape.direction(gradient, step_size)
    moved = shape.project(start - change if descend else start + change, x, epsilon)
    return ops.cast(ops.minimum(ops.maximum(moved, lower), upper), x_adv.dtype)


def perturb(
    x: Any,
    loss_gradient: Callable[[Any], Any],
    *,
    epsilon: Any,
    step_size: Any,
    num_steps: int,
    lower: Any,
    upper: Any,
    descend: bool,
    seed: Any,
    norm: str = "linf",
    random_start_probability: float = 0.0,
) -> Any:
    """Runs a projected gradient attack: a random start, then `num_steps` times `step`.

    Args:
        x: Clean images, floating, [B, ...].
        loss_gradient: Function from images in the shape and dtype of x to the gradient of the loss with respect to them
            (of the target's loss if `descend`, of the true label's if not), in any floating dtype and at any scale.
        epsilon: Radius of the ball, 0 or more.
        step_size: Length of a step, 0 or more.
        num_steps: 1 or more.
        lower: Smallest valid value.
        upper: Largest valid value.
        descend: Whether to decrease the loss (a targeted attack) or to increase it.
        seed: int32 [2], of the random start.
        norm: Name of the ball.
        random_start_probability: Probability with which an example starts at a random point of the ball.

    Returns:
        Adversarial images in the shape and dtype of x, through which no gradient flows. Rounding to float16 or bfloat16
        may move a value out of the ball by half a unit in its last place.

    Raises:
        ValueError: For images that are not floating, an argument out of its range, or a loss that does not depend on
            the images.
    """
    ball(norm)
    _check_probability("random_start_probability", random_start_probability)
    _check_not_negative("epsilon", epsilon)
    _check_not_negative("step_size", step_size)
    is_count = isinstance(num_steps, (int, np.integer)) and not isinstance(num_steps, bool) and num_steps >= 1
    require(is_count, "num_steps", num_steps, "a positive integer")
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    require(keras.backend.is_float_dtype(dtype), "x", dtype, "floating for a gradient to exist", "cast the images")
    clean = ops.stop_gradient(ops.cast(x, compute_dtype(x.dtype)))
    x_adv = clean
    if random_start_probability:
        x_adv = random_start(clean, epsilon, lower, upper, random_start_probability, norm, seed)
    for _ in range(num_steps):
        gradient = loss_gradient(ops.cast(x_adv, x.dtype))
        if gradient is None:
            remedy = "the loss that it differentiates does not depend on the images"
            raise ValueError(message("loss_gradient", "a function that returns a gradient", None, remedy))
        x_adv = step(x_adv, clean, gradient, step_size, epsilon, lower, upper, norm, descend)
    return ops.stop_gradient(ops.cast(x_adv, x.dtype))


def without_gradient(gradient: Any) -> Any:
    """Returns, for each example, whether its gradient has no entry that a step could follow: bool [B]."""
    values = list(range(1, len(gradient.shape)))
    return ops.logical_not(ops.any(ops.abs(gradient) > 0, axis=values))  # NaN is not above 0


def _check_probability(name: str, value: Any) -> None:
    require(_is_symbolic(value) or 0 <= value <= 1, name, value, "in [0, 1]")


def _check_not_negative(name: str, value: Any) -> None:
    fits = _is_symbolic(value) or bool(np.all(np.isfinite(value)) and np.all(np.asarray(value) >= 0))
    require(fits, name, value, "finite and not negative")


def _is_symbolic(value: Any) -> bool:
    """Returns whether the value may be known only when a graph runs."""
    return ops.is_tensor(value)
