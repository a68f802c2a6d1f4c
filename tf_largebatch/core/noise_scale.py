"""The gradient noise scale, estimated from gradient norms.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, "An Empirical Model of Large-Batch Training", 2018,
arXiv 1812.06162, section 2.2 (the simple noise scale) and appendix A.1 (its unbiased estimation), here with single
examples for the small batch.

Let the examples' gradients `g_i` be drawn independently with mean G and covariance Sigma. The simple noise scale

    B_simple = tr(Sigma) / ||G||^2

is the batch size at which the variance of the batch's mean gradient equals the square of its expectation. Well below
it a doubled batch saves nearly half of the updates; well above it, nearly none.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def estimates(mean_squared_norm: Any, squared_norm_of_mean: Any, batch_size: Any) -> tuple[Any, Any]:
    """Returns unbiased estimates of `||G||^2` and `tr(Sigma)` from one batch.

        ||G||^2    ~  (B ||g||^2 - s2) / (B - 1)
        tr(Sigma)  ~  B (s2 - ||g||^2) / (B - 1)          s2 = (1/B) sum_i ||g_i||^2,  g = (1/B) sum_i g_i

    Both are linear in what is measured, so that averages of them over updates, replicas and parts of the network are
    unbiased too, and so is an s2 from a random part of the batch. Their quotient is not: average first, then divide.
    The first one can be negative where noise outweighs the gradient.

    Args:
        mean_squared_norm: S2, of any shape: one entry for each tensor, or the sum over tensors.
        squared_norm_of_mean: `||g||^2`, same shape, same unit.
        batch_size: B, 2 or more.

    Returns:
        The estimates of `||G||^2` and of `tr(Sigma)`, in the shape and unit of what was given.
    """
    others = batch_size - 1
    gradient = (batch_size * squared_norm_of_mean - mean_squared_norm) / others
    trace = batch_size * (mean_squared_norm - squared_norm_of_mean) / others
    return gradient, trace


def simple_noise_scale(gradient: Any, trace: Any) -> np.ndarray:
    """Returns `B_simple = tr(Sigma) / ||G||^2`, in examples.

    Args:
        gradient: Estimate of `||G||^2`, any shape.
        trace: Estimate of `tr(Sigma)`, same shape.

    Returns:
        float64 array: the quotient, not below 0; inf where the gradient's estimate is not above 0, because the noise
        hides it; NaN where neither is above 0, as for a tensor whose gradient is always zero, or either is NaN.
    """
    gradient, trace = np.asarray(gradient, "float64"), np.asarray(trace, "float64")
    gradient, trace = np.broadcast_arrays(np.maximum(gradient, 0.0), np.maximum(trace, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(trace / gradient)
