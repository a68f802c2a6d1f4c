"""Convolutions' norms by products on a common grid, where shifting the input takes no copy.

The padded input and `d`, padded with zeros behind, lie on grids of the same width, all examples one after the other.
An offset of the kernel then is an offset into the flattened grid: the shifted input is a part of the same memory, and
what it reads across the edges of rows and examples meets zeros of `d`. A stride s splits the input into s phases along
each axis, every one a grid of its own.
"""

from __future__ import annotations

import itertools
import math

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.norms.sums import sum_squares_per_example
from tf_largebatch.norms.window import Window, every

# Half the bytes of both grids of a chunk, which should stay in the cache between the products. A quarter or four times
# as much costs a tenth more (16 and 32 channels, 32 and 16 px).
CHUNK_BYTES = 4 * 2**20


def applies(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether the form can be used: sizes known, one group."""
    return groups == 1 and a.shape[1:].is_fully_defined() and d.shape[1:].is_fully_defined()


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    shape = [*window.kernel_size, a.shape[-1], d.shape[-1]]
    chunk = chunk_of(4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])), CHUNK_BYTES)
    return norms_and_gradient_in_chunks(lambda a, d: sums(a, d, window, groups), a, d, chunk, shape)


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b]."""
    return norms_and_gradient(a, d, window, groups)[0]


def sums(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `norms_and_gradient` returns, of all examples at once."""
    parts = _contributions_by_offset(tf.cast(a, tf.float32), tf.cast(d, tf.float32), window)
    squares = tf.add_n([sum_squares_per_example(part) for part in parts])
    gradient = tf.stack([tf.reduce_sum(part, axis=0) for part in parts])
    return squares, tf.reshape(gradient, [*window.kernel_size, a.shape[-1], d.shape[-1]])


def _contributions_by_offset(a: tf.Tensor, d: tf.Tensor, window: Window) -> list[tf.Tensor]:
    """Returns `G_i` of one kernel offset after the other, each [b, C, P]."""
    out, axes = d.shape[1:-1], range(len(window.kernel_size))
    strides, rates = window.strides, window.dilation_rate
    grid = [out[i] + (window.kernel_size[i] - 1) * rates[i] // strides[i] for i in axes]
    positions = math.prod(grid)
    steps = [math.prod(grid[i + 1 :]) for i in axes]  # between neighbours along each axis
    b = static_or_dynamic_size(d, 0)
    d = tf.pad(d, [[0, 0], *([0, grid[i] - out[i]] for i in axes), [0, 0]])
    d = tf.reshape(d, [b, positions, d.shape[-1]])
    phases = _phases(a, window, list(out), grid)
    parts = []
    for offset in itertools.product(*(range(k) for k in window.kernel_size)):
        reach = [offset[i] * rates[i] for i in axes]
        phase = phases[tuple(reach[i] % strides[i] for i in axes)]
        start = sum(reach[i] // strides[i] * steps[i] for i in axes)
        shifted = tf.reshape(phase[start : start + b * positions], [b, positions, phase.shape[-1]])
        parts.append(tf.matmul(shifted, d, transpose_a=True))
    return parts


def _phases(a: tf.Tensor, window: Window, out: list[int], grid: list[int]) -> dict[tuple[int, ...], tf.Tensor]:
    """Returns the padded input's grids, flattened: `{phase: [(b + 1) positions, C]}`, the last example all zeros."""
    axes = range(len(grid))
    needed = [grid[i] * window.strides[i] for i in axes]
    before_after = window.padding_of(a, out)
    padding = []
    for i in axes:
        before, size = before_after[i][0], a.shape[1 + i]
        a = a if before + size <= needed[i] else _first(a, 1 + i, needed[i] - before)
        padding.append([before, needed[i] - before - a.shape[1 + i]])
    one_tap = window.is_pointwise
    a = tf.pad(a, [[0, 0 if one_tap else 1], *padding, [0, 0]])
    used = itertools.product(
        *(sorted({o * window.dilation_rate[i] % window.strides[i] for o in range(window.kernel_size[i])}) for i in axes)
    )
    phases = {}
    for phase in used:
        phases[phase] = tf.reshape(every(a, phase, window.strides, grid), [-1, a.shape[-1]])
    return phases


def _first(t: tf.Tensor, axis: int, count: int) -> tf.Tensor:
    """Returns the first `count` entries along an axis."""
    cut = (slice(None),) * axis + (slice(0, count),)
    return t[cut]
