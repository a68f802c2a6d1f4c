"""The loss on a plane through the weights, along two random directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tf_largebatch.analysis.loss_surface import LossSurface
from tf_largebatch.check import require


@dataclasses.dataclass(frozen=True)
class LossPlane:
    """The loss at `weights + first[i] * d1 + second[j] * d2`.

    Attributes:
        first: Coordinates along the first direction, [n].
        second: Coordinates along the second, [m].
        values: The loss, [n, m].
    """

    first: np.ndarray
    second: np.ndarray
    values: np.ndarray


def filter_normalized_direction(weights: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Returns a random direction in which every filter has the norm of that filter of the weights.

    A filter is what leads to one output: the last axis counts them. Tensors of fewer than two dimensions do not move.

    Source: H. Li et al., "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913, section 4.
    """
    directions = []
    for weight in weights:
        if weight.ndim < 2:
            directions.append(np.zeros_like(weight))
            continue
        direction = random.normal(size=weight.shape)
        axes = tuple(range(weight.ndim - 1))
        norms = [np.sqrt(np.square(a).sum(axes, keepdims=True)) for a in (weight, direction)]
        directions.append((direction * norms[0] / norms[1]).astype(weight.dtype))
    return directions


def loss_plane(surface: LossSurface, radius: float = 1.0, points: int = 21, seed: int = 0) -> LossPlane:
    """Returns the loss on a square of two random, filter-normalized directions around the present weights.

    Args:
        surface: The loss.
        radius: Half the side of the square; at 1 the directions are as long as the weights.
        points: Points along each direction; the loss is computed points squared times.
        seed: Of the directions: planes of the same seed can be compared where the shapes of the weights are the same.
    """
    require(radius > 0, "radius", radius, "above 0")
    require(points > 1, "points", points, "2 or more")
    random = np.random.default_rng(seed)
    weights = surface.weights()
    one, two = (filter_normalized_direction(weights, random) for _ in range(2))
    at = np.linspace(-radius, radius, points)
    moved = [
        [w + (a * d + b * e).astype(w.dtype) for w, d, e in zip(weights, one, two, strict=True)] for a in at for b in at
    ]
    values = np.array([surface.value(there) for there in moved]).reshape(points, points)
    return LossPlane(at, at, values)
