"""Depthwise convolutions' norms by a Pallas kernel for GPUs that reads the input once for all kernel offsets.

A program has a group of examples and a block of channels. It goes over an example's positions with one product for
each kernel offset, and holds the sums in registers. `depthwise_direct` is its reference.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from tf_largebatch.backend.jax.kernels.operands import operands
from tf_largebatch.backend.jax.kernels.pallas import LARGEST_INDEX, load, place, triton, where_examples_lie
from tf_largebatch.norms.window import Window

# Sums of more offsets do not fit the registers.
_MOST_OFFSETS = 49
_CHANNELS = 64
_PROGRAMS = 2112  # sixteen for each multiprocessor of an H100


def applies(a: jax.Array, d: jax.Array, window: Window) -> bool:
    """Returns whether the form can be used: one output a channel, a small kernel, and 32 bits count all entries."""
    padding = window.padding_of(a, list(d.shape[1:-1]))
    padded = math.prod(size + sum(sides) for size, sides in zip(a.shape[1:-1], padding, strict=True))
    return (
        triton is not None
        and a.shape[-1] == d.shape[-1]
        and math.prod(window.kernel_size) <= _MOST_OFFSETS
        and max(a.shape[0] * padded * a.shape[-1], math.prod(d.shape)) <= LARGEST_INDEX
    )


def norms_and_gradient(
    a: jax.Array, d: jax.Array, window: Window, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, 1]; both float32."""
    a, d = operands(a, d)
    batch, *out, channels = d.shape
    a = window.pad(a, out)
    layer = _Layer(window, a.shape[1:-1], tuple(out), channels, interpret)
    squares, gradient = where_examples_lie(_on_one_device, True)(a.reshape(batch, -1), d.reshape(batch, -1), layer)
    return squares, gradient.reshape(*window.kernel_size, channels, 1)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What the kernel needs to know of a layer besides its tensors."""

    window: Window
    padded: tuple[int, ...]
    out: tuple[int, ...]
    channels: int
    interpret: bool


def _on_one_device(a: jax.Array, d: jax.Array, layer: _Layer) -> list[jax.Array]:
    """Returns the squared norms [B] and the sum [offsets, C], from `a`, padded, and `d` of two axes."""
    batch, offsets = a.shape[0], math.prod(layer.window.kernel_size)
    blocks = math.ceil(layer.channels / _CHANNELS)
    group = math.ceil(batch / min(batch, math.ceil(_PROGRAMS / blocks)))
    groups = math.ceil(batch / group)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    squares, sums = pl.pallas_call(
        functools.partial(_program, layer=layer, batch=batch, group=group),
        grid=(groups, blocks),
        out_shape=[
            jax.ShapeDtypeStruct((blocks, batch), jnp.float32),
            jax.ShapeDtypeStruct((groups, offsets * layer.channels), jnp.float32),
        ],
        in_specs=[anywhere, anywhere],
        out_specs=[anywhere, anywhere],
        compiler_params=None if layer.interpret else triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=layer.interpret,
    )(a, d)
    return [squares.sum(0), sums.sum(0).reshape(offsets, layer.channels)]


def _program(a_ref: Any, d_ref: Any, squares_ref: Any, sums_ref: Any, layer: _Layer, batch: int, group: int) -> None:
    """Runs one program, with a group of the batch's examples and a block of channels."""
    window, padded, out, channels = layer.window, layer.padded, layer.out, layer.channels
    number, block = pl.program_id(0), pl.program_id(1)
    positions, offsets = math.prod(out), list(itertools.product(*(range(k) for k in window.kernel_size)))
    at_once = 16 if len(offsets) <= 9 else 8 if len(offsets) <= 25 else 4
    channel = block * _CHANNELS + jnp.arange(_CHANNELS)
    exists = None if channels % _CHANNELS == 0 else channel < channels
    inside = channel if exists is None else jnp.where(exists, channel, 0)
    steps = [math.prod(padded[axis + 1 :]) * channels for axis in range(len(padded))]
    strided = [step * stride for step, stride in zip(steps, window.strides, strict=True)]
    places = [
        sum(o * r * step for o, r, step in zip(offset, window.dilation_rate, steps, strict=True)) for offset in offsets
    ]
    none = [jnp.zeros((_CHANNELS,), jnp.float32) for _ in offsets]

    def example(n: Any, totals: list[Any]) -> list[Any]:
        index = number * group + n
        is_one = None if batch % group == 0 else index < batch
        index = index if is_one is None else jnp.minimum(index, batch - 1)

        def add_positions(c: Any, sums: list[Any]) -> list[Any]:
            t = c * at_once + jnp.arange(at_once)
            in_map = None if positions % at_once == 0 else t < positions
            t = t if in_map is None else jnp.where(in_map, t, 0)
            corner = place(t, out, strided)
            d_part = load(d_ref, index, t[:, None] * channels + channel[None, :], in_map, exists).astype(jnp.float32)
            parts = [load(a_ref, index, corner[:, None] + (inside + at)[None, :], None, None) for at in places]
            return [total + part.astype(jnp.float32) * d_part for total, part in zip(sums, parts, strict=True)]

        empty = [jnp.zeros((at_once, _CHANNELS), jnp.float32) for _ in offsets]
        sums = lax.fori_loop(0, math.ceil(positions / at_once), add_positions, empty)
        found = [jnp.sum(total, axis=0) for total in sums]
        squares = functools.reduce(lambda x, y: x + y, [g * g for g in found])
        triton.store(squares_ref.at[block, index], jnp.sum(squares), mask=is_one)
        if is_one is not None:
            found = [jnp.where(is_one, g, 0.0) for g in found]
        return [total + g for total, g in zip(totals, found, strict=True)]

    totals = lax.fori_loop(0, group, example, none)
    for k, total in enumerate(totals):
        triton.store(sums_ref.at[number, k * channels + channel], total, mask=exists)
