"""The balls that bound a perturbation: L-inf and L2.

The ball of radius `epsilon` around an image x is

    linf:  max |(x' - x) / epsilon| <= 1              each value within its channel's epsilon
    l2:    || (x' - x) / epsilon ||_2 <= 1            over all values of one image

A ball is one class: a random start, the direction of a step, the projection, and the distance. To add one, write a
subclass of `Ball` and add it to `BALLS`; every argument called `norm` then accepts its name.

Images have the examples on axis 0 and are float32 or float64. `epsilon` and `step_size` are in the unit of the images:
scalars, arrays [C] with one entry for each channel (channels last), or anything else that broadcasts against the
images' last axes.
"""

from __future__ import annotations

import abc
from typing import Any

from keras import ops

from tf_largebatch.check import require
from tf_largebatch.core import random_numbers


class Ball(abc.ABC):
    """The set of perturbations that an attack may choose from."""

    @abc.abstractmethod
    def start(self, x: Any, seed: Any) -> Any:
        """Returns a uniformly random point of the ball of radius 1 for each image.

        Args:
            x: Images, [B, ...], for their shape and dtype.
            seed: int32 [2, 2], two seeds.
        """

    @abc.abstractmethod
    def direction(self, gradient: Any, step_size: Any) -> Any:
        """Returns the direction d in which a step, `step_size * d`, changes the loss most.

        Args:
            gradient: Gradient of the loss with respect to the images, [B, ...], finite, at any scale.
            step_size: Length of the step, 0 or more.

        Returns:
            Tensor in the shape of the gradient; zero for an image whose gradient is zero.
        """

    @abc.abstractmethod
    def project(self, moved: Any, x: Any, epsilon: Any) -> Any:
        """Returns the points at `moved`, brought back into the ball of radius `epsilon` around x."""

    @abc.abstractmethod
    def distance(self, difference: Any) -> Any:
        """Returns the norm of each image's `difference`, [B]: the ball holds those of norm epsilon or less."""

    def size(self, difference: Any) -> Any:
        """Returns the size of each image's perturbation that is logged, [B]; by default its `distance`."""
        return self.distance(difference)


class LInf(Ball):
    """Each value changes by at most epsilon."""

    def start(self, x: Any, seed: Any) -> Any:
        """Returns `u`, uniform in [-1, 1] for each value."""
        return random_numbers.uniform(ops.shape(x), seed[0], x.dtype, -1.0, 1.0)

    def direction(self, gradient: Any, step_size: Any) -> Any:
        """Returns `sign(g)`."""
        return ops.sign(gradient)

    def project(self, moved: Any, x: Any, epsilon: Any) -> Any:
        """Returns `moved`, clipped to `x +- epsilon`."""
        return ops.minimum(ops.maximum(moved, x - epsilon), x + epsilon)

    def distance(self, difference: Any) -> Any:
        """Returns the largest absolute change of a value."""
        return ops.max(ops.abs(difference), axis=_values(difference))

    def size(self, difference: Any) -> Any:
        """Returns the mean absolute change of a value: the largest one is epsilon for nearly every image."""
        return ops.mean(ops.abs(difference), axis=_values(difference))


class L2(Ball):
    """The change of all values of an image has a Euclidean norm of at most epsilon."""

    def start(self, x: Any, seed: Any) -> Any:
        """Returns `r^(1/D) * d`, r uniform in [0, 1], d uniform on the unit sphere, D values in an image."""
        shape = ops.shape(x)
        values = ops.cast(ops.prod(ops.convert_to_tensor(shape[1:], "int32")), x.dtype)
        direction = _unit(random_numbers.normal(shape, seed[0], x.dtype))
        radius = random_numbers.uniform((shape[0], *[1] * (len(shape) - 1)), seed[1], x.dtype)
        return radius ** (1.0 / values) * direction

    def direction(self, gradient: Any, step_size: Any) -> Any:
        """Returns `(step_size * g) / || step_size * g ||_2`.

        This is the steepest direction if distance is measured in units of 1/255 of each channel's range. For a scalar
        step size it is `g / ||g||`.
        """
        # The product step_size * g could overflow if g were not divided by its largest entry first.
        return _unit(step_size * _unit_max(gradient))

    def project(self, moved: Any, x: Any, epsilon: Any) -> Any:
        """Returns `moved`, or the point where the line from x to it leaves the ball."""
        positive = epsilon > 0
        difference = ops.where(positive, moved - x, ops.zeros_like(x))
        in_radii = difference / ops.where(positive, epsilon, ops.ones_like(epsilon))
        length = ops.sqrt(ops.sum(ops.square(in_radii), axis=_values(x), keepdims=True))
        return x + difference / ops.maximum(length, 1.0)

    def distance(self, difference: Any) -> Any:
        """Returns the Euclidean norm over all values of an image."""
        return ops.sqrt(ops.sum(ops.square(difference), axis=_values(difference)))


BALLS: dict[str, Ball] = {"linf": LInf(), "l2": L2()}


def ball(norm: str) -> Ball:
    """Returns the ball of that name.

    Raises:
        ValueError: If `BALLS` has no such name.
    """
    require(norm in BALLS, "norm", norm, f"one of {', '.join(map(repr, BALLS))}")
    return BALLS[norm]


def _unit(vectors: Any) -> Any:
    """Divides each example's vector by its Euclidean norm; zero stays zero."""
    vectors = _unit_max(vectors)
    length = ops.sqrt(ops.sum(ops.square(vectors), axis=_values(vectors), keepdims=True))
    return vectors / ops.maximum(length, 1.0)  # the largest entry is 1, or all are 0


def _unit_max(vectors: Any) -> Any:
    """Divides each example's vector by its largest absolute entry; zero stays zero."""
    largest = ops.max(ops.abs(vectors), axis=_values(vectors), keepdims=True)
    # XLA multiplies by the reciprocal, which for the largest numbers is no normal one and counts as 0: a power of two
    # makes both smaller first.
    smaller = ops.where(largest > 1, ops.full_like(largest, 2.0**-64), ops.ones_like(largest))
    vectors, largest = vectors * smaller, largest * smaller
    return vectors / ops.where(largest > 0, largest, ops.ones_like(largest))


def _values(x: Any) -> list[int]:
    """Returns the axes of one example."""
    return list(range(1, len(x.shape)))
