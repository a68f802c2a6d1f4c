"""Convolutions' norms in the forms that are cheap on a TPU.

Memory traffic decides there. The compiler fuses a product for every example with the two sums taken of it, the sum of
squares and the sum over examples, so that the contributions never reach memory. What is left is reading `a` and `d`
once for each product, and copying tensors that lie with the examples innermost, where no product for each example can
be formed. The tables behind every choice are in benchmarks/README.md.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from tf_largebatch.backend.jax.kernels import convolution_gram
from tf_largebatch.backend.jax.kernels.matmul import in_fused_blocks
from tf_largebatch.backend.jax.kernels.operands import operands
from tf_largebatch.norms.sums import squared_norms_and_sum
from tf_largebatch.norms.window import Window

# Channels side by side in a register; fewer leave the rest of it empty.
_LANES = 128

_Sums = tuple[jax.Array, jax.Array]  # `||G_i||^2`, shape [B], and `sum_i G_i`


def applies(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether the forms can be used: two spatial axes, one group."""
    del d, window
    return groups == 1 and a.ndim == 4


def norms_and_gradient(a: jax.Array, d: jax.Array, window: Window, groups: int) -> _Sums:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    del groups
    a, d = operands(a, d)
    if window.is_pointwise:
        squares, gradient = _pointwise(a, d, window)
    elif _pairs_apply(a, d, window):
        squares, gradient = _pairs_of_columns(a, d, window)
    else:
        squares, gradient = _columns(a, d, window)
    return squares, gradient.reshape(*window.kernel_size, a.shape[-1], d.shape[-1])


def squared_norms(a: jax.Array, d: jax.Array, window: Window, groups: int) -> jax.Array:
    """Returns `||G_i||^2`, shape [b], of a few examples: a barrier has them cut out before they are rearranged."""
    a, d = lax.optimization_barrier((a, d))
    return norms_and_gradient(a, d, window, groups)[0]


def gram_is_cheaper(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether positions are few and channels many: the Gram form takes `T^2 (C + P)` products."""
    inputs, outputs = a.shape[-1], d.shape[-1]
    positions = math.prod(d.shape[1:-1] if window.is_pointwise else a.shape[1:-1])
    cheaper = 8 * positions * (inputs + outputs) < math.prod(window.kernel_size) * inputs * outputs
    return cheaper and convolution_gram.applies(a, d, window, groups)


def _geometry(a: jax.Array, d: jax.Array, window: Window) -> list[tuple[int, int]]:
    """Returns, for each axis, the zeros before and after `a` with which every kernel offset meets all of `d`.

    The second number is negative where `a` goes on after the last row that is used.
    """
    before = [side[0] for side in window.padding_of(a, list(d.shape[1:-1]))]
    sizes = zip(d.shape[1:-1], window.kernel_size, window.strides, window.dilation_rate, strict=True)
    used = [(out - 1) * s + (k - 1) * r + 1 for out, k, s, r in sizes]
    return [(first, last - size - first) for first, last, size in zip(before, used, a.shape[1:-1], strict=True)]


def _pointwise(a: jax.Array, d: jax.Array, window: Window) -> _Sums:
    """Forms `G_i = a_i^T d_i` in as many blocks as it takes for the sums to be fused into the product."""
    a = next(iter(window.shifted_inputs(a, list(d.shape[1:-1]))))
    return in_fused_blocks(*(t.reshape(t.shape[0], -1, t.shape[-1]) for t in (a, d)))


def _columns(a: jax.Array, d: jax.Array, window: Window) -> _Sums:
    """Forms one product for every column of the kernel; the rows slide within it."""
    rows, columns = _geometry(a, d, window)
    a = lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), (0, 0, 0), (*columns, 0), (0, 0, 0)])
    width, stride, dilation = d.shape[2], window.strides[1], window.dilation_rate[1]
    starts = range(0, window.kernel_size[1] * dilation, dilation)
    shifted = [a[:, :, start : start + (width - 1) * stride + 1 : stride] for start in starts]
    if a.shape[-1] * window.kernel_size[1] <= _LANES:
        # The inputs for all columns fit beside each other, as in a first layer: one product.
        shifted = [jnp.concatenate(shifted, -1)]
    parts = [squared_norms_and_sum(_products(x, d, rows, window)) for x in shifted]
    squares, gradients = zip(*parts, strict=True)
    return functools.reduce(operator.add, squares), jnp.concatenate(gradients, 1)  # [rows, columns C, P]


def _pairs_apply(a: jax.Array, d: jax.Array, window: Window) -> bool:
    """Returns whether a kernel of three columns meets an even number of columns, and channels fill half a register."""
    return (
        window.kernel_size[1] == 3
        and window.strides[1] == 1
        and window.dilation_rate[1] == 1
        and window.padding == "same"
        and a.shape[2] % 2 == 0
        and max(a.shape[-1], d.shape[-1]) <= _LANES // 2
    )


def _pairs_of_columns(a: jax.Array, d: jax.Array, window: Window) -> _Sums:
    """Puts two neighbouring columns side by side in the channels, so that no register is half empty.

    With columns 2m and 2m + 1 of `a` beside those of `d`, one product gives all that the kernel's middle column wants
    and half of what the outer two want, whose other halves join neighbouring pairs.
    """
    rows, _ = _geometry(a, d, window)
    inputs, outputs = a.shape[-1], d.shape[-1]
    a, d = (t.reshape(*t.shape[:2], t.shape[2] // 2, 2 * t.shape[3]) for t in (a, d))
    within = _products(a, d, rows, window)
    parts = [
        within[..., :inputs, outputs:] + _products(a[:, :, :-1, inputs:], d[:, :, 1:, :outputs], rows, window),
        within[..., :inputs, :outputs] + within[..., inputs:, outputs:],
        within[..., inputs:, :outputs] + _products(a[:, :, 1:, :inputs], d[:, :, :-1, outputs:], rows, window),
    ]
    squares, gradients = zip(*(squared_norms_and_sum(part) for part in parts), strict=True)
    return functools.reduce(operator.add, squares), jnp.stack(gradients, 1)


def _products(a: jax.Array, d: jax.Array, rows: tuple[int, int], window: Window) -> jax.Array:
    """Returns `G_i[o, c, p] = sum_{r,w} a[i, stride r + dilation o, w, c] d[i, r, w, p]`, a product for every example.

    It is one convolution in which the rows slide and the columns w are contracted. XLA's convolutions have no batch
    axis that both operands share, so the examples are an axis that slides too: the B examples of `a` are set B apart
    and those of `d` laid over them in steps of B - 1, so that at step i only example i meets itself. XLA writes batched
    products for the TPU in this way, and the compiler knows the pattern and multiplies nothing else.

    Args:
        a: [B, H, W, C].
        d: [B, R, W, P], of the same dtype.
        rows: Zeros before and after the rows of `a`, may be negative; they fix the number K of offsets o.
        window: Its first stride and dilation are the rows'.

    Returns:
        float32, shape [B, K, C, P].
    """
    batch = a.shape[0]
    return lax.conv_general_dilated(
        a,
        d,
        window_strides=(max(batch - 1, 1), window.dilation_rate[0]),
        padding=((0, 0), rows),
        lhs_dilation=(batch, 1),
        rhs_dilation=(1, window.strides[0]),
        # a: examples, rows, columns (contracted), channels (as a batch); d: examples, rows, columns, outputs
        dimension_numbers=lax.ConvDimensionNumbers((3, 2, 0, 1), (3, 2, 0, 1), (2, 3, 0, 1)),
        preferred_element_type=jnp.float32,
    )
