"""The layer-wise rate of LARS and CLARS: one formula for two gradient norms.

Sources: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888 (LARS);
Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576 (CLARS).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def compute_dtype(dtype: Any) -> str:
    """Returns the dtype in which norms, rates and the update of a variable of `dtype` are computed.

    Args:
        dtype: Dtype of the variable, as a string or a backend's dtype.

    Returns:
        `"float64"` for float64 variables, `"float32"` for every other floating dtype: squares of float16
        gradients overflow at 256 and a layer-wise rate near 1e-5 has few digits left in it.
    """
    return keras.backend.result_type(keras.backend.standardize_dtype(dtype), "float32")


def l2_norm(tensor: Any) -> Any:
    """Returns the Euclidean norm of all entries, `sqrt(sum x^2)`.

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
    """Returns the factor by which one tensor's learning rate is multiplied.

        rate = min(eta * weight_norm / (gradient_norm + epsilon), max_rate)
        rate = min(1, max_rate)   if weight_norm = 0 and gradient_norm > 0
        rate = 0                  if gradient_norm = 0
        rate = NaN                if weight_norm or gradient_norm is NaN or infinite

    The exceptions have these reasons:

    * Weights of norm 0 would never move at the rate of the first line. They start at the plain learning rate, as in
      LARS's implementations, or at the cap where it is lower. (The code released with the CLARS paper has
      `min(||grad|| / s, max_rate)` here, which costs another pass over every gradient; `||grad|| / s` is at most 1.)
    * At gradient norm 0 the first line gives the meaningless `eta * weight_norm / epsilon`, and the gradient asks for
      no step. With rate 0, as in the released code, classic momentum adds nothing to the velocity and moves on by what
      it holds, which earlier rates have scaled; popular momentum, which scales the whole velocity by the present
      rate, stands still and keeps the velocity for the next step. With rate 1 it would move by the learning rate times
      the velocity, hundreds of times a usual step.
    * A norm that is not finite must stay visible: an infinite one would give rate 0, and a cap can turn NaN into a
      number.

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
    start = 1.0
    if max_rate is not None:
        rate = ops.minimum(rate, max_rate)
        start = ops.minimum(start, max_rate) if ops.is_tensor(max_rate) else min(start, max_rate)
    rate = ops.where(weight_norm > 0, rate, ops.convert_to_tensor(start, rate.dtype))
    rate = ops.where(gradient_norm > 0, rate, ops.zeros_like(rate))
    finite = ops.logical_and(ops.isfinite(weight_norm), ops.isfinite(gradient_norm))
    return ops.where(finite, rate, ops.full_like(rate, float("nan")))
