"""What the norms of a convolution's per-example weight gradients cost on an accelerator, in JAX alone.

    python -m benchmarks.jax_forms --json=benchmarks/reports/jax_forms.json

times the forms below for the layers of ResNet-20 and ResNet-50 beside the ordinary weight gradient, which an exact
form replaces or, for `gram`, stands beside. A layer sees `a` [B, H, W, C] and gets `d` [B, h, w, P]; example i's
contribution for the kernel offset o is

    G_i[o] = sum_t a_{i, stride t + o} (x) d_{i, t}

Every form returns `||G_i||^2`, float32 [B], and `sum_i G_i`, float32 [k, k, C, P]. JAX and NumPy are enough: neither
TensorFlow nor Keras is imported.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from benchmarks import harness

Form = Callable[..., tuple[jax.Array, jax.Array]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Enough programs for the multiprocessors of an H100 to have two each.
PROGRAMS = 264


def convolution(a: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """The convolution itself, padding "same"."""
    return lax.conv_general_dilated(a, w.astype(a.dtype), (stride, stride), "SAME", dimension_numbers=_LAYOUT)


def weight_gradient(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> jax.Array:
    """The ordinary weight gradient, `sum_i G_i` alone."""
    w = jax.ShapeDtypeStruct((kernel, kernel, a.shape[-1], d.shape[-1]), a.dtype)
    return jax.linear_transpose(lambda w: convolution(a, w, stride), w)(d)[0]


def patches(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The patches of all offsets side by side, then one product an example."""
    columns = jnp.concatenate(list(_shifted(a, d, kernel, stride)), -1).reshape(a.shape[0], -1, kernel**2 * a.shape[-1])
    g = _products(columns, _positions(d))
    return jnp.square(g).sum((1, 2)), g.sum(0).reshape(kernel, kernel, a.shape[-1], d.shape[-1])


def offsets(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """One product an example and kernel offset."""
    by_offset = [_products(_positions(part), _positions(d)) for part in _shifted(a, d, kernel, stride)]
    squares = sum(jnp.square(g).sum((1, 2)) for g in by_offset)
    return squares, jnp.stack([g.sum(0) for g in by_offset]).reshape(kernel, kernel, a.shape[-1], d.shape[-1])


def gram(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """`||G_i||^2 = sum_{t,t'} (d_t . d_t') sum_o (a_{s t + o} . a_{s t' + o})`, beside the ordinary weight gradient.

    The inner products of all pairs of pixels of `a` are made once and shifted for each offset.
    """
    batch, height, width, _ = d.shape
    # A barrier: XLA 0.11 fails to fuse the strided slices with the products that read them.
    padded = lax.optimization_barrier(a[:, ::stride, ::stride] if kernel == 1 else _pad(a, d, kernel, stride))
    step = 1 if kernel == 1 else stride
    rows, columns = padded.shape[1:3]
    of_a, of_d = (_products(p, p, over_positions=False) for p in (_positions(padded), _positions(d)))
    of_a = of_a.reshape(batch, rows, columns, rows, columns)
    of_d = of_d.reshape(batch, height, width, height, width)
    total = jnp.zeros(batch, jnp.float32)
    for i in range(kernel):
        for j in range(kernel):
            r, c = slice(i, i + (height - 1) * step + 1, step), slice(j, j + (width - 1) * step + 1, step)
            total += (of_a[:, r, c, r, c] * of_d).sum((1, 2, 3, 4))
    return jnp.maximum(total, 0.0), weight_gradient(a, d, kernel, stride).astype(jnp.float32)


def kernel(
    a: jax.Array, d: jax.Array, kernel: int, stride: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A Pallas program for a group of examples and a tile of `G`: neither patches nor `G_i` reach the memory.

    A program forms its tile of one example's `G_i` in registers, adds its square sum to one number, adds the tile to
    the group's sum, and goes on to the next example.
    """
    batch, height, width, outputs = d.shape
    channels, positions, rows = a.shape[-1], height * width, kernel**2 * a.shape[-1]
    padded = _pad(a, d, kernel, stride)
    tile_rows, tile_columns, chunk, stages = _tiles(channels, outputs)
    grid = (min(batch, PROGRAMS), math.ceil(rows / tile_rows), math.ceil(outputs / tile_columns))
    group = math.ceil(batch / grid[0])
    grid = (math.ceil(batch / group), *grid[1:])
    padded_width = padded.shape[2]

    def program(a_ref: Any, d_ref: Any, squares_ref: Any, sums_ref: Any) -> None:
        number, tile_row, tile_column = (pl.program_id(axis) for axis in range(3))
        row = tile_row * tile_rows + jnp.arange(tile_rows)
        column = tile_column * tile_columns + jnp.arange(tile_columns)
        row_exists, column_exists = row < rows, column < outputs
        offset, channel = row // channels, row % channels
        in_window = ((offset // kernel) * padded_width + offset % kernel) * channels + channel
        in_window = jnp.where(row_exists, in_window, 0)

        def example(n: Any, group_sum: Any) -> Any:
            index = jnp.minimum(number * group + n, batch - 1)
            exists = number * group + n < batch

            def positions_of_chunk(c: Any, tile: Any) -> Any:
                t = c * chunk + jnp.arange(chunk)
                inside = t < positions
                t = jnp.where(inside, t, 0)
                corner = (t // width * padded_width + t % width) * (stride * channels)
                a_mask, d_mask = inside[:, None] & row_exists[None, :], inside[:, None] & column_exists[None, :]
                a_part = triton.load(a_ref.at[index, corner[:, None] + in_window[None, :]], mask=a_mask, other=0.0)
                d_part = triton.load(d_ref.at[index, t[:, None] * outputs + column[None, :]], mask=d_mask, other=0.0)
                dimensions = (((0,), (0,)), ((), ()))
                return tile + lax.dot_general(a_part, d_part, dimensions, preferred_element_type=jnp.float32)

            empty = jnp.zeros((tile_rows, tile_columns), jnp.float32)
            tile = lax.fori_loop(0, math.ceil(positions / chunk), positions_of_chunk, empty)
            triton.store(squares_ref.at[tile_row, tile_column, index], jnp.sum(tile * tile), mask=exists)
            return group_sum + jnp.where(exists, tile, empty)

        group_sum = lax.fori_loop(0, group, example, jnp.zeros((tile_rows, tile_columns), jnp.float32))
        at = row[:, None] * outputs + column[None, :]
        triton.store(sums_ref.at[number, at], group_sum, mask=row_exists[:, None] & column_exists[None, :])

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    squares, sums = pl.pallas_call(
        program,
        grid=grid,
        out_shape=(
            jax.ShapeDtypeStruct((*grid[1:], batch), jnp.float32),
            jax.ShapeDtypeStruct((grid[0], rows * outputs), jnp.float32),
        ),
        in_specs=[anywhere, anywhere],
        out_specs=(anywhere, anywhere),
        compiler_params=None if interpret else triton.CompilerParams(num_warps=4, num_stages=stages),
        interpret=interpret,
    )(padded.reshape(batch, -1), d.reshape(batch, -1))
    return squares.sum((0, 1)), sums.sum(0).reshape(kernel, kernel, channels, outputs)


FORMS: dict[str, Form] = {"patches": patches, "offsets": offsets, "gram": gram, "kernel": kernel}


def cheapest(a: jax.Array, d: jax.Array, kernel_size: int, on_gpu: bool) -> str:
    """The form to use by the layer's shape, as measured on an H100 in bfloat16; see benchmarks/README.md."""
    # A strided layer's Gram form needs the inner products of all pixels of its input, four times as many.
    positions = d.shape[1] * d.shape[2] if kernel_size == 1 else a.shape[1] * a.shape[2]
    if positions <= 256 and a.shape[-1] + d.shape[-1] >= 512:
        return "gram"
    return "kernel" if on_gpu and kernel_size > 1 else "offsets"


def _tiles(channels: int, outputs: int) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, positions of a chunk, pipeline stages; the fastest tried."""
    if outputs <= 16:
        return (16 if channels < 16 else 64), 16, 128, 2
    return (64, 32, 64, 3) if outputs <= 32 else (64, 64, 64, 3)


def _positions(t: jax.Array) -> jax.Array:
    return t.reshape(t.shape[0], -1, t.shape[-1])


def _products(x: jax.Array, y: jax.Array, over_positions: bool = True) -> jax.Array:
    """A product an example, over its positions or over its channels, accumulated in float32."""
    equation = "btc,btp->bcp" if over_positions else "btc,buc->btu"
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _pad(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> jax.Array:
    totals = [max((out - 1) * stride + kernel - size, 0) for size, out in zip(a.shape[1:3], d.shape[1:3], strict=True)]
    return jnp.pad(a, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])


def _shifted(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> Iterator[jax.Array]:
    """For each kernel offset the inputs that it meets, [B, h, w, C]."""
    batch, height, width, _ = d.shape
    padded = _pad(a, d, kernel, stride)
    for i in range(kernel):
        for j in range(kernel):
            end = (batch, i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, a.shape[-1])
            yield lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))


# Network, batch, pixels of the input, input and output channels, kernel, stride.
LAYERS = (
    ("ResNet-20", 4096, 32, 3, 16, 3, 1),
    ("ResNet-20", 4096, 32, 16, 16, 3, 1),
    ("ResNet-20", 4096, 32, 16, 32, 3, 2),
    ("ResNet-20", 4096, 16, 32, 32, 3, 1),
    ("ResNet-20", 4096, 8, 64, 64, 3, 1),
    ("ResNet-50", 256, 224, 3, 64, 7, 2),
    ("ResNet-50", 256, 56, 64, 64, 3, 1),
    ("ResNet-50", 256, 56, 64, 256, 1, 1),
    ("ResNet-50", 256, 28, 128, 128, 3, 1),
    ("ResNet-50", 256, 28, 512, 128, 1, 1),
    ("ResNet-50", 256, 14, 256, 256, 3, 1),
    ("ResNet-50", 256, 14, 1024, 256, 1, 1),
    ("ResNet-50", 256, 7, 512, 512, 3, 1),
    ("ResNet-50", 256, 7, 512, 2048, 1, 1),
)


def _milliseconds(program: Callable[..., Any], *arguments: jax.Array) -> float:
    """The median time of a call over several rounds of ten."""
    jax.block_until_ready(program(*arguments))
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(10):
            result = program(*arguments)
        jax.block_until_ready(result)
        rounds.append(100 * (time.perf_counter() - start))
    return statistics.median(rounds)


def measure_layer(layer: tuple[str, int, int, int, int, int, int]) -> dict[str, Any]:
    """Times all forms of a layer; the Gram form only where positions are few."""
    _, batch, pixels, channels, outputs, size, stride = layer
    key, out = jax.random.key(0), math.ceil(pixels / stride)
    a = jax.random.normal(key, (batch, pixels, pixels, channels), jnp.bfloat16)
    d = jax.random.normal(jax.random.fold_in(key, 1), (batch, out, out, outputs), jnp.bfloat16)
    row: dict[str, Any] = {
        **dict(zip(("network", "batch", "pixels", "channels", "outputs", "kernel", "stride"), layer, strict=True)),
        "weight_gradient_ms": _milliseconds(
            jax.jit(functools.partial(weight_gradient, kernel=size, stride=stride)), a, d
        ),
        "chosen": cheapest(a, d, size, on_gpu=True),
    }
    for name, form in FORMS.items():
        if name == "gram" and out**2 > 256:
            continue
        row[f"{name}_ms"] = _milliseconds(jax.jit(functools.partial(form, kernel=size, stride=stride)), a, d)
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file of the report")
    given = parser.parse_args()
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "dtype": "bfloat16",
        "layers": [],
    }
    for layer in LAYERS:
        report["layers"].append(measure_layer(layer))
        print(report["layers"][-1], flush=True)
        harness.write_report(given.json, report)


if __name__ == "__main__":
    main()
