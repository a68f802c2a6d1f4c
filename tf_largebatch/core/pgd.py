"""Adversarial images by projected gradient steps: random targets, random starts, steps, projection.

Used by concurrent adversarial learning: Liu, Chen, Cheng, Hsieh, You, "Concurrent Adversarial Learning for
Large-Batch Training", arXiv 2106.00221. The attack is that of Madry et al., "Towards Deep Learning Models Resistant to
Adversarial Attacks", arXiv 1706.06083.

Conventions of this module. Images have the examples on axis 0. `epsilon`, `step_size`, `lower` and `upper` are in the
unit of the images (`in_input_units` converts pixels of 255) and are scalars, arrays [C] with one entry per channel of
channels-last images, or anything else that broadcasts against the images' last axes ([C, 1, 1] if channels come first).
The ball of radius `epsilon` around x is

    linf:  max |(x' - x) / epsilon| <= 1              each value within its channel's epsilon
    l2:    || (x' - x) / epsilon ||_2 <= 1            over all values of one image

With `epsilon = in_input_units(pixels, value_range)` the second line says that the distance, measured in pixels of 255
whatever each channel's scaling, is at most `pixels`. A valid image lies in [lower, upper]; the range has the last word,
so that an x outside of it is pulled inside, ball or no ball. Everything is computed in float32 (float64 for float64
images). Random numbers depend on `seed` alone, an int32 tensor or array [2]: the same seed, the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tf_largebatch.core.rates import compute_dtype

# Fixed, since the default differs between devices.
_ALGORITHM = "philox"


def bounds(value_range: Any) -> tuple[Any, Any]:
    """Lower and upper end of the range of valid inputs.

    Args:
        value_range: `(lower, upper)`, or one such pair per channel: shape [C, 2].

    Returns:
        Two floats, or two float32 arrays [C].

    Raises:
        ValueError: unless every pair is of finite numbers with lower < upper.
    """
    try:
        pairs = np.asarray(value_range, "float64")
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.ndim not in (1, 2) or pairs.shape[-1] != 2 or not pairs.size:
        raise ValueError(
            f"value_range must be a pair (lower, upper) or one such pair per channel, got {value_range!r}."
        )
    if not np.all(np.isfinite(pairs)) or not np.all(pairs[..., 0] < pairs[..., 1]):
        raise ValueError(f"value_range must have finite lower < upper in every pair, got {value_range!r}.")
    if pairs.ndim == 1:
        return float(pairs[0]), float(pairs[1])
    return pairs[:, 0].astype("float32"), pairs[:, 1].astype("float32")


def in_input_units(pixels: float, value_range: Any) -> Any:
    """Converts a distance in pixels of 255 into the unit of the model's inputs.

        pixels / 255 * (upper - lower)

    Args:
        pixels: distance on the scale where valid images span 0 to 255.
        value_range: `(lower, upper)` of valid inputs after the user's scaling, or one such pair per channel, [C, 2].

    Returns:
        A float, or a float32 array [C].

    Raises:
        ValueError: unless every pair is of finite numbers with lower < upper.
    """
    lower, upper = bounds(value_range)
    return pixels / 255.0 * (upper - lower)


def random_wrong_classes(labels: Any, num_classes: int, seed: Any) -> tf.Tensor:
    """Uniformly random classes other than the labels: `(label + r) mod num_classes`, r uniform in 1..num_classes-1.

    Args:
        labels: true classes in [0, num_classes), integers of any dtype and shape, usually [B].
        num_classes: number of classes, 2 or more.
        seed: int32 [2].

    Returns:
        int32 tensor in the shape of the labels.

    Raises:
        ValueError: if there are fewer than 2 classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more for there to be a wrong class, got num_classes={num_classes}.")
    labels = tf.cast(labels, tf.int32)
    offset = tf.random.stateless_uniform(
        tf.shape(labels), seed, minval=1, maxval=num_classes, dtype=tf.int32, alg=_ALGORITHM
    )
    return tf.math.floormod(labels + offset, num_classes)


def random_start(x: Any, epsilon: Any, lower: Any, upper: Any, probability: float, norm: str, seed: Any) -> tf.Tensor:
    """A random point of the ball around each image, with a probability; else the image itself.

        linf:  x + epsilon * u,                u uniform in [-1, 1] for each value
        l2:    x + epsilon * r^(1/D) * d,      r uniform in [0, 1], d uniform on the unit sphere, D values an image

    clipped to [lower, upper].

    Args:
        x: images, floating, [B, ...].
        epsilon: radius of the ball, 0 or more.
        lower: smallest valid value.
        upper: largest valid value.
        probability: in [0, 1], decided for each example by itself.
        norm: "linf" or "l2".
        seed: int32 [2].

    Returns:
        Tensor in the shape and dtype of x.

    Raises:
        ValueError: for an unknown norm or a probability outside [0, 1].
    """
    _check_norm(norm)
    _check_probability("probability", probability)
    x = tf.convert_to_tensor(x)
    start, dtype = ops.cast(x, compute_dtype(x.dtype)), compute_dtype(x.dtype)
    epsilon, lower, upper = (ops.cast(value, dtype) for value in (epsilon, lower, upper))
    seeds = tf.random.split(seed, 3, alg=_ALGORITHM)
    per_example = tf.concat([tf.shape(x)[:1], tf.ones([len(x.shape) - 1], tf.int32)], axis=0)
    if norm == "linf":
        offset = tf.random.stateless_uniform(tf.shape(x), seeds[0], -1.0, 1.0, dtype, alg=_ALGORITHM)
    else:
        direction = _unit(tf.random.stateless_normal(tf.shape(x), seeds[0], dtype=dtype, alg=_ALGORITHM))
        values = ops.cast(tf.reduce_prod(tf.shape(x)[1:]), dtype)
        radius = tf.random.stateless_uniform(per_example, seeds[1], dtype=dtype, alg=_ALGORITHM) ** (1.0 / values)
        offset = radius * direction
    point = ops.minimum(ops.maximum(start + epsilon * offset, lower), upper)
    chosen = tf.random.stateless_uniform(per_example, seeds[2], dtype=dtype, alg=_ALGORITHM) < probability
    return ops.cast(ops.where(chosen, point, start), x.dtype)


def noise(x: Any, epsilon: Any, lower: Any, upper: Any, norm: str, seed: Any) -> tf.Tensor:
    """A uniformly random point of the ball around each image, clipped: the baseline that an attack must beat.

    Args:
        x: images, floating, [B, ...].
        epsilon: radius of the ball, 0 or more.
        lower: smallest valid value.
        upper: largest valid value.
        norm: "linf" or "l2".
        seed: int32 [2].

    Returns:
        Tensor in the shape and dtype of x.

    Raises:
        ValueError: for an unknown norm.
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
) -> tf.Tensor:
    """One step along the gradient and back into the ball and the range.

        linf:  x' = x_adv +- step_size * sign(g)
        l2:    x' = x_adv +- step_size * (step_size * g) / || step_size * g ||_2
        then onto the ball around x:  linf: clip x' to x +- epsilon;  l2: shorten x' - x to the radius
        then clip to [lower, upper]

    + ascends and - descends. The l2 direction is the steepest one where distance is measured in pixels of 255; for a
    scalar step size it is `g / ||g||`. An image whose gradient is zero stays put. The gradient's scale does not
    matter, so a loss scale need not be undone. Entries of the gradient that are NaN count as zero, infinite ones (an
    overflow of float16) as the largest finite number of their sign: finite images give finite images.

    Args:
        x_adv: where the images are now, floating, [B, ...].
        x: the clean images, same shape.
        gradient: gradient of the loss with respect to the images, at `x_adv`, same shape.
        step_size: 0 or more.
        epsilon: radius of the ball, 0 or more.
        lower: smallest valid value.
        upper: largest valid value.
        norm: "linf" or "l2".
        descend: whether the loss is to fall (a targeted attack) or to rise.

    Returns:
        Tensor in the shape and dtype of `x_adv`.

    Raises:
        ValueError: for an unknown norm.
    """
    _check_norm(norm)
    x_adv = tf.convert_to_tensor(x_adv)
    dtype = compute_dtype(x_adv.dtype)
    start, x, gradient = (ops.cast(value, dtype) for value in (x_adv, x, gradient))
    step_size, epsilon, lower, upper = (ops.cast(value, dtype) for value in (step_size, epsilon, lower, upper))
    largest = float(np.finfo(dtype).max)
    gradient = ops.where(ops.isnan(gradient), ops.zeros_like(gradient), gradient)
    gradient = ops.minimum(ops.maximum(gradient, -largest), largest)
    # Under l2 the product step_size * g could overflow if g were not divided by its largest entry first.
    direction = ops.sign(gradient) if norm == "linf" else _unit(step_size * _unit_max(gradient))
    moved = start - step_size * direction if descend else start + step_size * direction
    if norm == "linf":
        moved = ops.minimum(ops.maximum(moved, x - epsilon), x + epsilon)
    else:
        moved = _onto_l2_ball(moved, x, epsilon)
    return ops.cast(ops.minimum(ops.maximum(moved, lower), upper), x_adv.dtype)


def perturb(
    x: Any,
    loss_gradient: Callable[[tf.Tensor], Any],
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
) -> tf.Tensor:
    """Projected gradient attack: a random start and `num_steps` times `step`.

    Args:
        x: clean images, floating, [B, ...].
        loss_gradient: gives, for images in the shape and dtype of x, the gradient of the loss with respect to them
            (of the target's loss if `descend`, of the true label's if not), in any floating dtype and at any scale.
        epsilon: radius of the ball, 0 or more.
        step_size: length of a step, 0 or more.
        num_steps: 1 or more.
        lower: smallest valid value.
        upper: largest valid value.
        descend: whether the loss is to fall (a targeted attack) or to rise.
        seed: int32 [2], of the random start.
        norm: "linf" or "l2".
        random_start_probability: with it an example starts at a random point of the ball.

    Returns:
        Adversarial images in the shape and dtype of x, through which no gradient flows. Rounding to a short dtype may
        carry a value past the ball's surface by half a unit in its last place.

    Raises:
        ValueError: for images that are not floating, an argument out of its range, or a loss that does not depend on
            the images.
    """
    _check_norm(norm)
    _check_probability("random_start_probability", random_start_probability)
    _check_not_negative("epsilon", epsilon)
    _check_not_negative("step_size", step_size)
    if not isinstance(num_steps, (int, np.integer)) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer, got num_steps={num_steps!r}.")
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise ValueError(f"x must be floating for a gradient with respect to it, got dtype {x.dtype.name}: cast it.")
    clean = tf.stop_gradient(ops.cast(x, compute_dtype(x.dtype)))
    x_adv = clean
    if random_start_probability:
        x_adv = random_start(clean, epsilon, lower, upper, random_start_probability, norm, seed)
    for _ in range(num_steps):
        gradient = loss_gradient(tf.cast(x_adv, x.dtype))
        if gradient is None:
            raise ValueError("loss_gradient gave None: the loss it differentiates does not depend on the images.")
        x_adv = step(x_adv, clean, gradient, step_size, epsilon, lower, upper, norm, descend)
    return tf.stop_gradient(tf.cast(x_adv, x.dtype))


def _onto_l2_ball(moved: tf.Tensor, x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """The points at `moved`, or where the line from x to them leaves the ball."""
    positive = epsilon > 0
    difference = ops.where(positive, moved - x, ops.zeros_like(x))
    in_radii = difference / ops.where(positive, epsilon, ops.ones_like(epsilon))
    distance = ops.sqrt(ops.sum(ops.square(in_radii), axis=_values(x), keepdims=True))
    return x + difference / ops.maximum(distance, 1.0)


def _unit(vectors: tf.Tensor) -> tf.Tensor:
    """Each example's vector divided by its Euclidean norm; zero stays zero."""
    vectors = _unit_max(vectors)
    length = ops.sqrt(ops.sum(ops.square(vectors), axis=_values(vectors), keepdims=True))
    return vectors / ops.maximum(length, 1.0)  # the largest entry is 1 or all are 0


def _unit_max(vectors: tf.Tensor) -> tf.Tensor:
    """Each example's vector divided by its largest absolute entry; zero stays zero."""
    largest = ops.max(ops.abs(vectors), axis=_values(vectors), keepdims=True)
    return vectors / ops.where(largest > 0, largest, ops.ones_like(largest))


def _values(x: tf.Tensor) -> list[int]:
    """The axes of one example."""
    return list(range(1, len(x.shape)))


def _check_norm(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got norm={norm!r}.")


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {name}={value!r}.")


def _check_not_negative(name: str, value: Any) -> None:
    if tf.is_tensor(value):
        return  # perhaps known only when the graph runs
    if not np.all(np.isfinite(value)) or np.any(np.asarray(value) < 0):
        raise ValueError(f"{name} must be finite and not negative, got {name}={value!r}.")
