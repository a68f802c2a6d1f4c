"""What the norms of a convolution's per-example weight gradients cost on an accelerator.

    python -m benchmarks.jax_forms --json=benchmarks/reports/jax_forms.json

times the forms below for the layers of ResNet-20 and ResNet-50 beside the ordinary weight gradient, which an exact
form replaces or, for `gram`, stands beside. A layer sees `a` [B, H, W, C] and gets `d` [B, h, w, P]; example i's
contribution for the kernel offset o is

    G_i[o] = sum_t a_{i, stride t + o} (x) d_{i, t}

Every form returns `||G_i||^2`, float32 [B], and `sum_i G_i`, float32 [k, k, C, P]. The forms are the package's, and
patches written out for comparison.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import harness
from tf_largebatch.backend.jax.kernels import convolution, convolution_direct, convolution_gram, convolution_pallas
from tf_largebatch.backend.jax.kernels.convolution_pallas import Tiles
from tf_largebatch.norms.window import Window

Form = Callable[..., tuple[jax.Array, jax.Array]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(a: jax.Array, w: jax.Array, stride: int) -> jax.Array:
    """The convolution itself, padding "same"."""
    return lax.conv_general_dilated(a, w.astype(a.dtype), (stride, stride), "SAME", dimension_numbers=_LAYOUT)


def weight_gradient(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> jax.Array:
    """The ordinary weight gradient, `sum_i G_i` alone."""
    w = jax.ShapeDtypeStruct((kernel, kernel, a.shape[-1], d.shape[-1]), a.dtype)
    return jax.linear_transpose(lambda w: convolve(a, w, stride), w)(d)[0]


def patches(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The patches of all offsets side by side, then one product an example."""
    columns = jnp.concatenate(list(_window(kernel, stride).shifted_inputs(a, list(d.shape[1:3]))), -1)
    columns = columns.reshape(a.shape[0], -1, kernel**2 * a.shape[-1])
    g = jnp.einsum("btc,btp->bcp", columns, d.reshape(len(d), -1, d.shape[-1]), preferred_element_type=jnp.float32)
    return jnp.square(g).sum((1, 2)), g.sum(0).reshape(kernel, kernel, a.shape[-1], d.shape[-1])


def offsets(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """One product an example and kernel offset."""
    return convolution_direct.norms_and_gradient(a, d, _window(kernel, stride), 1)


def gram(a: jax.Array, d: jax.Array, kernel: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The Gram form of all pairs of pixels, beside the ordinary weight gradient."""
    squares = convolution_gram.squared_norms(a, d, _window(kernel, stride), 1)
    return squares, weight_gradient(a, d, kernel, stride).astype(jnp.float32)


def kernel(a: jax.Array, d: jax.Array, kernel: int, stride: int, **options: Any) -> tuple[jax.Array, jax.Array]:
    """The Pallas program: neither patches nor `G_i` reach the memory."""
    return convolution_pallas.norms_and_gradient(a, d, _window(kernel, stride), 1, **options)


FORMS: dict[str, Form] = {"patches": patches, "offsets": offsets, "gram": gram, "kernel": kernel}


def cheapest(a: jax.Array, d: jax.Array, kernel_size: int, stride: int) -> str:
    """The form that the package chooses on this device."""
    form = convolution.cheapest_form(a, d, _window(kernel_size, stride), 1)
    return {convolution_gram: "gram", convolution_pallas: "kernel", convolution_direct: "offsets"}[form]


def _window(kernel: int, stride: int) -> Window:
    return Window((kernel,) * 2, (stride,) * 2, "same", (1, 1))


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

# Rows, columns, positions, warps and stages to try for wide and for narrow layers.
_TILES = (
    Tiles(64, 64, 64),
    Tiles(64, 64, 64, stages=4),
    Tiles(128, 64, 64),
    Tiles(64, 128, 64),
    Tiles(128, 128, 64, warps=8),
    Tiles(128, 128, 32, warps=8, stages=4),
    Tiles(64, 32, 64),
    Tiles(128, 32, 64),
    Tiles(64, 32, 128),
)
_NARROW_TILES = (Tiles(64, 16, 128, stages=2), Tiles(16, 16, 128, stages=2), Tiles(64, 16, 256), Tiles(128, 16, 128))


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


def measure_layer(layer: tuple[str, int, int, int, int, int, int], all_tiles: bool = False) -> dict[str, Any]:
    """Times all forms of a layer, the Gram form only where positions are few; or the Pallas kernel with all tiles."""
    _, batch, pixels, channels, outputs, size, stride = layer
    key, out = jax.random.key(0), math.ceil(pixels / stride)
    a = jax.random.normal(key, (batch, pixels, pixels, channels), jnp.bfloat16)
    d = jax.random.normal(jax.random.fold_in(key, 1), (batch, out, out, outputs), jnp.bfloat16)
    row: dict[str, Any] = {
        **dict(zip(("network", "batch", "pixels", "channels", "outputs", "kernel", "stride"), layer, strict=True)),
        "weight_gradient_ms": _milliseconds(
            jax.jit(functools.partial(weight_gradient, kernel=size, stride=stride)), a, d
        ),
        "chosen": cheapest(a, d, size, stride),
    }
    forms: dict[str, Form] = {name: form for name, form in FORMS.items() if name != "gram" or out**2 <= 256}
    if all_tiles:
        tiles = _TILES if outputs > 16 else _NARROW_TILES
        forms = {str(one): functools.partial(kernel, tiles=one) for one in tiles if one.columns < 2 * outputs}
    for name, form in forms.items():
        row[f"{name}_ms"] = _milliseconds(jax.jit(functools.partial(form, kernel=size, stride=stride)), a, d)
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file of the report")
    parser.add_argument("--tiles", action="store_true", help="time the Pallas kernel with other tiles instead")
    given = parser.parse_args()
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "dtype": "bfloat16",
        "layers": [],
    }
    for layer in LAYERS:
        if given.tiles and layer[5] == 1:
            continue
        report["layers"].append(measure_layer(layer, given.tiles))
        print(report["layers"][-1], flush=True)
        harness.write_report(given.json, report)


if __name__ == "__main__":
    main()
