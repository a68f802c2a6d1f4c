"""Layers x shapes for the tests of per-example norms in both Keras worlds.

Name -> (input shape without the batch, function that makes the layers).
"""

from __future__ import annotations

from typing import Any

import keras


def layer_cases(L: Any) -> dict[str, Any]:
    """The cases with the layers of `keras.layers` or `tf_keras.layers`."""
    return {
        "dense": ((6,), lambda: [L.Dense(5, activation="tanh")]),
        "dense no bias": ((6,), lambda: [L.Dense(5, use_bias=False)]),
        "dense over few positions, wide": ((3, 40), lambda: [L.Dense(50, activation="relu")]),
        "dense over many positions": ((20, 4), lambda: [L.Dense(3)]),
        "dense over two axes": ((4, 5, 6), lambda: [L.Dense(3)]),
        "conv1d same": ((9, 3), lambda: [L.Conv1D(4, 3, padding="same", activation="relu")]),
        "conv1d causal dilated": ((9, 3), lambda: [L.Conv1D(4, 3, padding="causal", dilation_rate=2)]),
        "conv1d strides": ((10, 3), lambda: [L.Conv1D(4, 4, strides=3)]),
        "conv2d valid": ((7, 6, 3), lambda: [L.Conv2D(4, 3)]),
        "conv2d same, no bias": ((7, 6, 3), lambda: [L.Conv2D(4, 3, padding="same", use_bias=False)]),
        "conv2d same, stride 2": ((7, 8, 3), lambda: [L.Conv2D(4, 3, strides=2, padding="same")]),
        "conv2d uneven kernel and strides": (
            (9, 8, 2),
            lambda: [L.Conv2D(4, (2, 5), strides=(1, 2), padding="same")],
        ),
        "conv2d dilated": ((9, 9, 3), lambda: [L.Conv2D(4, 3, dilation_rate=2, padding="same")]),
        "conv2d pointwise": ((5, 5, 6), lambda: [L.Conv2D(4, 1)]),
        "conv2d pointwise, stride 2, same": ((6, 5, 6), lambda: [L.Conv2D(4, 1, strides=2, padding="same")]),
        "conv2d stride above kernel": ((9, 9, 3), lambda: [L.Conv2D(4, 2, strides=3, padding="same")]),
        "conv2d groups": ((6, 6, 6), lambda: [L.Conv2D(4, 3, groups=2, padding="same")]),
        "conv2d groups, one channel each": ((6, 6, 3), lambda: [L.Conv2D(6, 3, groups=3, strides=2, padding="same")]),
        "conv1d causal, one channel each": ((7, 4), lambda: [L.Conv1D(4, 3, groups=4, padding="causal")]),
        "conv2d wide, small map": ((3, 3, 24), lambda: [L.Conv2D(32, 3, padding="same")]),
        "conv2d one position": ((3, 3, 8), lambda: [L.Conv2D(6, 3)]),
        "conv3d": ((4, 5, 4, 2), lambda: [L.Conv3D(3, 2, strides=(1, 2, 1), padding="same")]),
        "depthwise1d": ((8, 3), lambda: [L.DepthwiseConv1D(3, padding="same")]),
        "depthwise2d": ((7, 7, 3), lambda: [L.DepthwiseConv2D(3, padding="same", activation="relu")]),
        "depthwise2d multiplier, stride": (
            (7, 7, 3),
            lambda: [L.DepthwiseConv2D(3, strides=2, depth_multiplier=2)],
        ),
        "depthwise2d dilated": ((8, 8, 2), lambda: [L.DepthwiseConv2D(3, dilation_rate=2, padding="same")]),
        "separable1d": ((8, 3), lambda: [L.SeparableConv1D(4, 3, padding="same")]),
        "separable2d": (
            (7, 7, 3),
            lambda: [L.SeparableConv2D(4, 3, strides=2, depth_multiplier=2, padding="same")],
        ),
        "batch norm": ((5, 5, 3), lambda: [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()]),
        "batch norm on features": ((5,), lambda: [L.Dense(4), L.BatchNormalization()]),
        "batch norm, no scale": ((5, 5, 3), lambda: [L.BatchNormalization(scale=False)]),
        "batch norm, no center": ((5, 5, 3), lambda: [L.BatchNormalization(center=False)]),
        "batch norm, other axis": ((5, 4, 3), lambda: [L.BatchNormalization(axis=1)]),
        "layer norm": ((5, 6), lambda: [L.LayerNormalization()]),
        "layer norm, two axes": ((4, 5, 6), lambda: [L.LayerNormalization(axis=(2, 3))]),
        "layer norm, no scale": ((5, 6), lambda: [L.LayerNormalization(scale=False)]),
        "group norm": ((4, 4, 6), lambda: [L.GroupNormalization(3)]),
        "group norm, other axis": ((6, 4, 5), lambda: [L.GroupNormalization(2, axis=1)]),
        "einsum": ((4, 6), lambda: [L.EinsumDense("abc,cd->abd", output_shape=(4, 5), bias_axes="d")]),
        "einsum heads": ((4, 6), lambda: [L.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de")]),
        "einsum ellipsis": ((4, 6), lambda: [L.EinsumDense("...x,xy->...y", output_shape=5)]),
        "einsum per position": ((4, 6), lambda: [L.EinsumDense("abc,bcd->abd", (4, 5), bias_axes="bd")]),
        "einsum bias on an axis as long as the last": (
            (4, 6),
            lambda: [L.EinsumDense("abc,cd->abd", (4, 4), bias_axes="b")],
        ),
        "dense over positions, no bias": ((4, 6), lambda: [L.Dense(5, use_bias=False)]),
        "conv2d same, stride 2, activation": (
            (7, 8, 3),
            lambda: [L.Conv2D(4, 3, strides=2, padding="same", activation="relu")],
        ),
        "conv2d dilated, no bias": ((6, 6, 3), lambda: [L.Conv2D(4, 3, dilation_rate=2, use_bias=False)]),
        "conv2d pointwise, stride 2": ((5, 5, 6), lambda: [L.Conv2D(4, 1, strides=2)]),
        "conv2d patches": ((8, 8, 3), lambda: [L.Conv2D(5, 4, strides=4)]),
        "conv3d, no stride": ((4, 5, 4, 2), lambda: [L.Conv3D(3, 2, padding="same")]),
        "depthwise2d multiplier, stride, same": (
            (7, 7, 3),
            lambda: [L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)],
        ),
        "separable1d valid": ((8, 3), lambda: [L.SeparableConv1D(4, 3)]),
        "separable2d, one filter a channel": ((7, 7, 3), lambda: [L.SeparableConv2D(4, 3, strides=2, padding="same")]),
        "prelu": ((5, 5, 3), lambda: [L.PReLU(shared_axes=[1, 2])]),
        "batch norm alone": ((5, 5, 3), lambda: [L.BatchNormalization()]),
        "batch norm, no center, small epsilon": (
            (5, 5, 3),
            lambda: [L.BatchNormalization(center=False, epsilon=1e-7)],
        ),
        "batch norm on features alone": ((5,), lambda: [L.BatchNormalization()]),
        "batch norm, axis 2": ((5, 4, 3), lambda: [L.BatchNormalization(axis=2)]),
        "batch norm 3d": ((3, 4, 3, 2), lambda: [L.BatchNormalization()]),
        "layer norm, small epsilon": ((5, 6), lambda: [L.LayerNormalization(epsilon=1e-6)]),
        "layer norm, two axes, no scale": ((4, 5, 6), lambda: [L.LayerNormalization(axis=(2, 3), scale=False)]),
    }


CASES = layer_cases(keras.layers)
BATCH = 5
