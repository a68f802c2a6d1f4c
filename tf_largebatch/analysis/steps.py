"""How smooth the loss is in each tensor, and how long a step each tensor can take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tf_largebatch.analysis.loss_surface import LossSurface
from tf_largebatch.analysis.sharpness import layer_sharpness
from tf_largebatch.check import require

# Factors by which the search for the longest stable step begins, and to which it is exact.
_COARSE, _FINE = 2.0, 1.02
_MOST_DOUBLINGS = 60


def lipschitz_estimates(
    surface: LossSurface, radius: float = 0.01, samples: int = 8, seed: int = 0
) -> dict[str, float]:
    """Returns, for each tensor, an estimate from below of the Lipschitz constant of its gradient.

        L_k = max over samples d of   ||g_k(w + d) - g_k(w)|| / ||d||,     d on tensor k alone, ||d|| = radius * ||w_k||

    Args:
        surface: The loss.
        radius: Length of the perturbations, relative to the tensor's norm (absolute where that is 0).
        samples: Random directions for each tensor.
        seed: Of the directions.

    Returns:
        `{label: L_k}`, in the unit of the loss by that of the weights squared.

    Source: the layer-wise constants of Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576.
    """
    require(radius > 0, "radius", radius, "above 0")
    require(samples > 0, "samples", samples, "above 0")
    random = np.random.default_rng(seed)
    weights, here = surface.weights(), surface.gradient()
    found = {}
    for index, label in enumerate(surface.labels):
        length = radius * (float(np.linalg.norm(weights[index])) or 1.0)
        ratios = []
        for _ in range(samples):
            direction = random.normal(size=weights[index].shape)
            step = (direction * length / np.linalg.norm(direction)).astype(weights[index].dtype)
            there = surface.gradient([*weights[:index], weights[index] + step, *weights[index + 1 :]])
            ratios.append(float(np.linalg.norm(there[index] - here[index]) / np.linalg.norm(step)))
        found[label] = max(ratios)
    return found


@dataclasses.dataclass(frozen=True)
class StableStep:
    """How long a step of gradient descent one tensor can take, all others fixed.

    Attributes:
        predicted: 2 / (largest eigenvalue of the tensor's block of the Hessian); infinite where that is not positive.
        observed: The longest step after which the loss is not higher, see `stable_steps`.
    """

    predicted: float
    observed: float


def stable_steps(surface: LossSurface, updates: int = 20, seed: int = 0) -> dict[str, StableStep]:
    """Returns, for each tensor, the longest stable step that theory gives and the longest one observed.

    Observed is the longest step, to 2 %, with which so many updates of gradient descent on that tensor alone do not
    end at a higher loss. With many updates both are the same on a quadratic; where the curvature falls along the way,
    as it does in networks, the observed one is longer.

    Args:
        surface: The loss.
        updates: Updates of gradient descent.
        seed: Of the Lanczos method.

    Returns:
        `{label: StableStep}`.
    """
    require(updates > 0, "updates", updates, "above 0")
    weights, start = surface.weights(), surface.value()
    found = {}
    for index, (label, eigenvalue) in enumerate(layer_sharpness(surface, seed=seed).items()):
        predicted = 2.0 / eigenvalue if eigenvalue > 0 else np.inf

        def ends_higher(step: float, index: int = index) -> bool:
            moved = [*weights]
            for _ in range(updates):
                moved[index] = (moved[index] - step * surface.gradient(moved)[index]).astype(weights[index].dtype)
                if not np.isfinite(moved[index]).all():
                    return True
            return not surface.value(moved) <= start

        found[label] = StableStep(
            float(predicted), _last_below(ends_higher, predicted if np.isfinite(predicted) else 1)
        )
    return found


def _last_below(fails: Callable[[float], bool], guess: float) -> float:
    """Returns the largest number that does not fail, near a guess.

    It is 0 or infinity if there is none within 60 doublings.
    """
    low = high = guess
    if fails(guess):
        for _ in range(_MOST_DOUBLINGS):
            low /= _COARSE
            if not fails(low):
                break
            high = low
        else:
            return 0.0
    else:
        for _ in range(_MOST_DOUBLINGS):
            high *= _COARSE
            if fails(high):
                break
            low = high
        else:
            return float("inf")
    while high / low > _FINE:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if fails(middle) else (middle, high)
    return low
