"""Chooses how a convolution's norms are computed, from the device and the shapes.

Every form computes the same; they differ in cost. The measurements behind each threshold are in benchmarks/README.md.
"""

from __future__ import annotations

import math
from types import ModuleType

import jax

from tf_largebatch.backend.jax.kernels import (
    convolution_direct,
    convolution_gram,
    convolution_pallas,
    convolution_tpu,
)
from tf_largebatch.backend.jax.kernels.matmul import few_positions
from tf_largebatch.norms.device import device
from tf_largebatch.norms.window import Window

# So many input channels, as those of images, leave most of the ordinary weight gradient's tiles empty on a GPU.
_FEW_CHANNELS = 4
# From so many positions on, a pointwise product an example costs a GPU what the weight gradient does.
_MANY_POSITIONS = 2048


def contributions(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns the `G_i` in float32, shape [b, *kernel_size, C / groups, P]: the direct form."""
    return convolution_direct.contributions(a, d, window, groups)


def squared_norms(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [b]."""
    a, window = _as_pointwise(a, d, window, groups)
    return cheapest_form(a, d, window, groups).squared_norms(a, d, window, groups)


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window, groups: int) -> tuple[jax.Array, jax.Array] | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, both float32.

    Returns None where the norms are cheaper beside the ordinary weight gradient.
    """
    a, pointwise = _as_pointwise(a, d, window, groups)
    form = cheapest_form(a, d, pointwise, groups)
    if form is convolution_gram:
        return None
    squares, gradient = form.norms_and_gradient(a, d, pointwise, groups)
    return squares, gradient.reshape(*window.kernel_size, -1, d.shape[-1])


def all_norms_are_free(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether the norms of all examples, with the gradient, cost no more than those of a few beside it."""
    a, window = _as_pointwise(a, d, window, groups)
    form = cheapest_form(a, d, window, groups)
    if device() == "tpu":
        # One product gives both at the traffic of the ordinary kernel. A few examples would have to be cut out.
        return form is convolution_tpu and window.is_pointwise
    if device() == "gpu":
        if form is convolution_pallas:
            return a.shape[-1] <= _FEW_CHANNELS
        return form is convolution_direct and window.is_pointwise and math.prod(d.shape[1:-1]) >= _MANY_POSITIONS
    return False


def _as_pointwise(a: jax.Array, d: jax.Array, window: Window, groups: int) -> tuple[jax.Array, Window]:
    """Returns the input and the window of a pointwise convolution with the same `G_i`, where patches do not overlap.

    The first layers of vision transformers, and some that reduce a map: each patch becomes one position, and its pixels
    become channels.
    """
    kernel, out = window.kernel_size, d.shape[1:-1]
    patches = tuple(size * k for size, k in zip(out, kernel, strict=True)) == tuple(a.shape[1:-1])
    if groups > 1 or window.is_pointwise or kernel != window.strides or max(window.dilation_rate) > 1 or not patches:
        return a, window
    axes, ones = len(kernel), (1,) * len(kernel)
    a = a.reshape(a.shape[0], *(size for pair in zip(out, kernel, strict=True) for size in pair), a.shape[-1])
    a = a.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return a.reshape(a.shape[0], *out, -1), Window(ones, ones, "valid", ones)


def cheapest_form(a: jax.Array, d: jax.Array, window: Window, groups: int) -> ModuleType:
    """Returns the module of the form to use; the direct form is right for everything."""
    arguments = a, d, window, groups
    if device() == "tpu":
        if convolution_tpu.gram_is_cheaper(*arguments):
            return convolution_gram
        return convolution_tpu if convolution_tpu.applies(*arguments) else convolution_direct
    if convolution_gram.applies(*arguments) and _gram_is_cheaper(a, d, window):
        return convolution_gram
    if device() == "gpu" and not window.is_pointwise and convolution_pallas.applies(*arguments):
        return convolution_pallas
    return convolution_direct


def _gram_is_cheaper(a: jax.Array, d: jax.Array, window: Window) -> bool:
    """Returns whether the Gram form, beside the ordinary gradient, costs less than the others."""
    channels, outputs, positions = a.shape[-1], d.shape[-1], math.prod(d.shape[1:-1])
    if device() == "gpu":
        return few_positions(positions, channels, outputs)
    offsets = math.prod(window.kernel_size)
    gram = convolution_gram.entries_of_a(d, window) * channels + positions**2 * (outputs + offsets)
    return 2 * gram < positions * channels * outputs * offsets
