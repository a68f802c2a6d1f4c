"""Layer-wise learning rates of LARS and CLARS: one formula, two gradient norms.

Sources: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888 (LARS);
Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576 (CLARS).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def compute_dtype(dtype: Any) -> str:
    """The dtype in which norms, rates and the update of a variable of `dtype` are computed.

    Args:
        dtype: Dtype of the variable, as a string or a backend's dtype.

    Returns:
        `"float64"` for float64 variables, `"float32"` for every other floating dtype: squares of float16
        gradients overflow at 256 and a layer-wise rate near 1e-5 has few digits left in it.
    """
    return keras.backend.result_type(keras.backend.standardize_dtype(dtype), "float32")


def l2_norm(tensor: Any) -> Any:
    """Euclidean norm of all entries, `sqrt(sum x^2)`.

    Args:
        tensor: Dense tensor or variable of any shape and floating dtype.

    Returns:
        Scalar tensor of `compute_dtype(tensor.dtype)`.
    """
    tensor = ops.cast(tensor, compute_dtype(tensor.dtype))
    return ops.sqrt(ops.sum(ops.square(tensor)))


def layerwise_rate(
    weight_norm: Any,
    gradient_norm: Any,
    eta: float,
    epsilon: float,
    max_rate: float | None = None,
) -> Any:
    """The factor by which one tensor's learning rate is multiplied.

        rate = min(eta * weight_norm / (gradient_norm + epsilon), max_rate)
        rate = 1      if weight_norm = 0 or gradient_norm = 0
        rate = NaN    if weight_norm or gradient_norm is NaN or infinite

    The first exception lets weights that start at zero move at the plain learning rate, as in LARS; the
    cap does not apply to it. The second keeps a broken step visible: an infinite norm would otherwise
    give rate 0, and a cap can turn a NaN into a number.

    Args:
        weight_norm: `||w_k||`, scalar or any shape, floating.
        gradient_norm: Same shape. LARS: `||g_k||`; CLARS: the mean of the per-example gradient norms `s_k`.
        eta: Trust coefficient, above 0.
        epsilon: Added to the gradient norm, in the gradient's unit, 0 or more.
        max_rate: Cap on the rate, or None for no cap.

    Returns:
        The rate, in the shape and dtype of the norms.
    """
    rate = eta * weight_norm / (gradient_norm + epsilon)
    if max_rate is not None:
        rate = ops.minimum(rate, max_rate)
    adapts = ops.logical_and(weight_norm > 0, gradient_norm > 0)
    finite = ops.logical_and(ops.isfinite(weight_norm), ops.isfinite(gradient_norm))
    rate = ops.where(adapts, rate, ops.ones_like(rate))
    return ops.where(finite, rate, ops.full_like(rate, float("nan")))
