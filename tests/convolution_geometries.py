"""Geometries of convolutions, random inputs for them, and their norms and gradient by the definition, in NumPy."""

from __future__ import annotations

import numpy as np

from tf_largebatch.norms.window import Window

BATCH = 5
# name: input sizes, kernel, strides, padding, dilation, groups, input and output channels
GEOMETRIES = {
    "1d": ((9,), (3,), (1,), "same", (1,), 1, 3, 4),
    "1d causal, dilated": ((9,), (3,), (1,), "causal", (2,), 1, 3, 4),
    "1d, stride 3": ((11,), (4,), (3,), "valid", (1,), 1, 3, 4),
    "same": ((6, 7), (3, 3), (1, 1), "same", (1, 1), 1, 3, 4),
    "valid": ((6, 7), (3, 2), (1, 1), "valid", (1, 1), 1, 3, 4),
    "16 channels": ((5, 5), (3, 3), (1, 1), "same", (1, 1), 1, 16, 16),
    "stride 2": ((7, 8), (3, 3), (2, 2), "same", (1, 1), 1, 3, 4),
    "stride 2, valid, rest unseen": ((8, 9), (3, 3), (2, 2), "valid", (1, 1), 1, 3, 4),
    "7 x 7, stride 2": ((13, 12), (7, 7), (2, 2), "valid", (1, 1), 1, 3, 4),
    "uneven": ((9, 8), (2, 5), (1, 2), "same", (1, 1), 1, 2, 4),
    "dilated": ((9, 9), (3, 3), (1, 1), "same", (2, 2), 1, 3, 4),
    "dilated, stride 2": ((9, 9), (3, 3), (2, 2), "valid", (2, 2), 1, 3, 4),
    "stride above kernel": ((9, 9), (2, 2), (3, 3), "same", (1, 1), 1, 3, 4),
    "pointwise": ((5, 4), (1, 1), (1, 1), "same", (1, 1), 1, 6, 4),
    "pointwise, stride 2": ((6, 5), (1, 1), (2, 2), "same", (1, 1), 1, 6, 4),
    "one position": ((3, 3), (3, 3), (1, 1), "valid", (1, 1), 1, 6, 5),
    "wide, small map": ((2, 2), (3, 3), (1, 1), "same", (1, 1), 1, 24, 20),
    "groups": ((6, 6), (3, 3), (1, 1), "same", (1, 1), 2, 6, 4),
    "3d": ((4, 5, 4), (2, 2, 2), (1, 2, 1), "same", (1, 1, 1), 1, 2, 3),
    "1d, long, strided": ((41,), (8,), (3,), "valid", (1,), 1, 1, 4),
    "1d, stride above kernel": ((11,), (2,), (3,), "valid", (1,), 1, 2, 4),
    "one row of windows": ((2, 24), (1, 8), (1, 4), "same", (1, 1), 1, 1, 5),
}


def random_case(name: str, batch: int = BATCH):
    """Random inputs and output gradients of a geometry, float32, its window and its number of groups."""
    sizes, kernel, strides, padding, rates, groups, channels, outputs = GEOMETRIES[name]
    window = Window(kernel, strides, padding, rates)
    rng = np.random.default_rng(0)
    if padding == "valid":
        out = [(n - (k - 1) * r - 1) // s + 1 for n, k, s, r in zip(sizes, kernel, strides, rates, strict=True)]
    else:
        out = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    a = rng.normal(size=(batch, *sizes, channels)).astype("float32")
    return a, rng.normal(size=(batch, *out, outputs)).astype("float32"), window, groups


def reference(a: np.ndarray, d: np.ndarray, window: Window, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """`||G_i||^2` and `sum_i G_i`: in float64, kernel offset by kernel offset and position by position."""
    a, d = a.astype("float64"), d.astype("float64")
    a = np.pad(a, [(0, 0), *window.padding_of(a, list(d.shape[1:-1])), (0, 0)])
    channels, outputs = a.shape[-1] // groups, d.shape[-1] // groups
    g = np.zeros((len(a), *window.kernel_size, channels, groups * outputs))
    for offset in np.ndindex(*window.kernel_size):
        for t in np.ndindex(*d.shape[1:-1]):
            at = tuple(
                p * s + o * r for p, o, s, r in zip(t, offset, window.strides, window.dilation_rate, strict=True)
            )
            for j in range(groups):
                x = a[(slice(None), *at)][:, j * channels : (j + 1) * channels]
                y = d[(slice(None), *t)][:, j * outputs : (j + 1) * outputs]
                g[(slice(None), *offset, slice(None), slice(j * outputs, (j + 1) * outputs))] += np.einsum(
                    "bc,bp->bcp", x, y
                )
    return (g**2).sum(tuple(range(1, g.ndim))), g.sum(0)
