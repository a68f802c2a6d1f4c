"""Convolutions' norms by a Pallas kernel for GPUs that writes neither patches nor contributions to memory.

A program has a group of examples and a tile of `G`, rows being kernel offsets and input channels, columns output
channels. It forms the tile of one example's `G_i` in registers, writes the sum of its squares, adds the tile to the
group's sum, and goes on to the next example. `convolution_direct` is its reference.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from tf_largebatch.backend.jax.kernels.operands import operands
from tf_largebatch.backend.jax.kernels.pallas import LARGEST_INDEX, load, mask_of, place, triton, where_examples_lie
from tf_largebatch.norms.window import Window

# A group of examples for each of two programs on every multiprocessor of an H100, if a tile is all of `G`.
_GROUPS = 264
# Enough programs in all. More groups only write more sums.
_PROGRAMS = 2112


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is cut.

    Attributes:
        rows: Of a tile, kernel offsets times input channels; a power of two, as all of these.
        columns: Of a tile, output channels.
        positions: Multiplied at a time.
        warps: Of a program.
        stages: Of the pipeline that loads inputs.
    """

    rows: int
    columns: int
    positions: int
    warps: int = 4
    stages: int = 3


def tiles_for(channels: int, outputs: int) -> Tiles:
    """Returns the fastest tiles of those tried on an H100 (benchmarks/README.md)."""
    if outputs <= 16:
        return Tiles(16 if channels < 16 else 64, 16, 128, stages=2)
    return Tiles(64, 32 if outputs <= 32 else 64, 64)


def applies(a: jax.Array, d: jax.Array, window: Window, groups: int) -> bool:
    """Returns whether the form can be used: one group, and 32 bits count the entries of `a` and `d`."""
    padded = [size + sum(sides) for size, sides in zip(a.shape[1:-1], _padding(a, d, window), strict=True)]
    entries = max(a.shape[0] * math.prod(padded) * a.shape[-1], math.prod(d.shape))
    return triton is not None and groups == 1 and entries <= LARGEST_INDEX


def norms_and_gradient(
    a: jax.Array, d: jax.Array, window: Window, groups: int, interpret: bool = False, tiles: Tiles | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, P]; both float32."""
    del groups
    squares, sums = _call(a, d, window, tiles, interpret, with_gradient=True)
    return squares, sums.reshape(*window.kernel_size, a.shape[-1], d.shape[-1])


def squared_norms(
    a: jax.Array, d: jax.Array, window: Window, groups: int, interpret: bool = False, tiles: Tiles | None = None
) -> jax.Array:
    """Returns `||G_i||^2` in float32, shape [b]."""
    del groups
    return _call(a, d, window, tiles, interpret, with_gradient=False)[0]


def _padding(a: jax.Array, d: jax.Array, window: Window) -> list[list[int]]:
    return window.padding_of(a, list(d.shape[1:-1]))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """What the kernel needs to know of a layer besides its tensors."""

    window: Window
    padded: tuple[int, ...]
    out: tuple[int, ...]
    channels: int
    outputs: int
    tiles: Tiles
    with_gradient: bool
    interpret: bool

    @property
    def rows(self) -> int:
        """Of `G`: kernel offsets times input channels."""
        return math.prod(self.window.kernel_size) * self.channels


def _call(
    a: jax.Array, d: jax.Array, window: Window, tiles: Tiles | None, interpret: bool, with_gradient: bool
) -> Sequence[jax.Array]:
    """Returns squared norms [B] and, with the gradient, the sum of contributions [offsets C, P]."""
    a, d = operands(a, d)
    batch, *out, outputs = d.shape
    channels = a.shape[-1]
    a = window.pad(a, out)
    tiles = tiles or tiles_for(channels, outputs)
    layer = _Layer(window, a.shape[1:-1], tuple(out), channels, outputs, tiles, with_gradient, interpret)
    return where_examples_lie(_on_one_device, with_gradient)(a.reshape(batch, -1), d.reshape(batch, -1), layer)


def _on_one_device(a: jax.Array, d: jax.Array, layer: _Layer) -> list[jax.Array]:
    """Does the same for `a`, padded, and `d` of two axes: the example, and everything else."""
    batch, tiles = a.shape[0], layer.tiles
    across = (math.ceil(layer.rows / tiles.rows), math.ceil(layer.outputs / tiles.columns))
    groups = min(batch, _GROUPS, math.ceil(_PROGRAMS / math.prod(across)))
    group = math.ceil(batch / groups)
    groups = math.ceil(batch / group)
    shapes = [jax.ShapeDtypeStruct((*across, batch), jnp.float32)]
    if layer.with_gradient:
        shapes.append(jax.ShapeDtypeStruct((groups, layer.rows * layer.outputs), jnp.float32))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    settings = None if layer.interpret else triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
    squares, *sums = pl.pallas_call(
        functools.partial(_program, layer=layer, batch=batch, group=group),
        grid=(groups, *across),
        out_shape=shapes,
        in_specs=[anywhere, anywhere],
        out_specs=[anywhere for _ in shapes],
        compiler_params=settings,
        interpret=layer.interpret,
    )(a, d)
    return [squares.sum((0, 1)), *(t.sum(0).reshape(layer.rows, layer.outputs) for t in sums)]


def _program(a_ref: Any, d_ref: Any, squares_ref: Any, *sums_ref: Any, layer: _Layer, batch: int, group: int) -> None:
    """Runs one program, with a group of the batch's examples and a tile of `G`."""
    window, padded, out, tiles = layer.window, layer.padded, layer.out, layer.tiles
    rows, channels, outputs, positions = layer.rows, layer.channels, layer.outputs, math.prod(out)
    number, tile_row, tile_column = (pl.program_id(axis) for axis in range(3))
    row = tile_row * tiles.rows + jnp.arange(tiles.rows)
    column = tile_column * tiles.columns + jnp.arange(tiles.columns)
    # None where all exist: a mask or a selection keeps the compiler from loading neighbours at once.
    row_exists = None if rows % tiles.rows == 0 else row < rows
    column_exists = None if outputs % tiles.columns == 0 else column < outputs
    steps = [math.prod(padded[axis + 1 :]) * channels for axis in range(len(padded))]
    dilated = [step * rate for step, rate in zip(steps, window.dilation_rate, strict=True)]
    strided = [step * stride for step, stride in zip(steps, window.strides, strict=True)]
    if channels % tiles.rows == 0:  # all rows belong to one offset
        first = tile_row * tiles.rows
        offset, channel = lax.div(first, channels), lax.rem(first, channels)
        in_window = place(offset, window.kernel_size, dilated) + channel + jnp.arange(tiles.rows)
    else:
        within = row if row_exists is None else jnp.where(row_exists, row, 0)
        count = jnp.full_like(within, channels)
        in_window = place(lax.div(within, count), window.kernel_size, dilated) + lax.rem(within, count)
    empty = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)

    def example(n: Any, group_sum: Any) -> Any:
        index = number * group + n
        exists = None if batch % group == 0 else index < batch
        index = index if exists is None else jnp.minimum(index, batch - 1)

        def add_positions(c: Any, tile: Any) -> Any:
            t = c * tiles.positions + jnp.arange(tiles.positions)
            inside = None if positions % tiles.positions == 0 else t < positions
            t = t if inside is None else jnp.where(inside, t, 0)
            corner = place(t, out, strided)
            a_part = load(a_ref, index, corner[:, None] + in_window[None, :], inside, row_exists)
            d_part = load(d_ref, index, t[:, None] * outputs + column[None, :], inside, column_exists)
            dimensions = (((0,), (0,)), ((), ()))
            return tile + lax.dot_general(a_part, d_part, dimensions, preferred_element_type=jnp.float32)

        tile = lax.fori_loop(0, math.ceil(positions / tiles.positions), add_positions, empty)
        triton.store(squares_ref.at[tile_row, tile_column, index], jnp.sum(tile * tile), mask=exists)
        if not sums_ref:
            return group_sum
        return group_sum + (tile if exists is None else jnp.where(exists, tile, empty))

    total = lax.fori_loop(0, group, example, empty if sums_ref else 0)
    if sums_ref:
        at = row[:, None] * outputs + column[None, :]
        triton.store(sums_ref[0].at[number, at], total, mask=mask_of(at.shape, row_exists, column_exists))
