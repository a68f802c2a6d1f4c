"""Chooses how a convolution's norms are computed, from the device and the shapes that are known when a step is traced.

Every form computes the same; they differ in cost. The measurements behind each threshold are in benchmarks/README.md.
"""

from __future__ import annotations

import math
from types import ModuleType

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import (
    convolution_columns,
    convolution_direct,
    convolution_gram,
    convolution_grid,
    convolution_loop,
    convolution_tpu,
)
from tf_largebatch.backend.tensorflow.order import after
from tf_largebatch.norms.device import device
from tf_largebatch.norms.window import Window

# On a CPU a call of the weight-gradient kernel for one example takes 150 microseconds of dispatch. It pays from this
# many multiply-adds an example on, in three dimensions from fewer: the other forms read the input once for each offset.
_ENOUGH_FOR_ONE_EXAMPLE = {1: 2e7, 2: 2e7, 3: 5e6}
# So few input channels leave the rows of a product for one kernel offset too short.
_FEW_CHANNELS = 4


def contributions(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns the `G_i` in float32, shape [b, *kernel_size, C / groups, P]: the direct form."""
    return convolution_direct.contributions(a, d, window, groups)


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [b]."""
    (a,) = after([a], d)
    if device() == "tpu":
        squares = convolution_tpu.squared_norms(a, d, window, groups)
        if squares is not None:
            return squares
    return cheapest_form(a, d, window, groups).squared_norms(a, d, window, groups)


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, both float32.

    Returns None where the norms are cheaper beside the ordinary weight-gradient kernel.
    """
    (a,) = after([a], d)
    if device() == "tpu":
        together = convolution_tpu.norms_and_gradient(a, d, window, groups)
        if together is not None:
            return together
    form = cheapest_form(a, d, window, groups)
    return None if form is convolution_gram else form.norms_and_gradient(a, d, window, groups)


def all_norms_are_free(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    """Returns whether the norms of all examples, with the gradient, cost no more than those of a few beside it."""
    return device() == "tpu" and convolution_tpu.all_norms_are_free(a, d, window, groups)


def cheapest_form(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> ModuleType:
    """Returns the module of the form to use on a CPU; elsewhere the direct form, which is right for everything."""
    arguments = a, d, window, groups
    if device() != "cpu":
        return convolution_direct
    if convolution_gram.applies(*arguments) and _gram_is_cheaper(*arguments):
        return convolution_gram
    if window.is_pointwise:
        return convolution_direct
    columns = convolution_columns.applies(*arguments) and a.shape[-1] <= _FEW_CHANNELS
    if columns and all(k == 1 for k in window.kernel_size[:-1]):
        return convolution_columns  # a single product
    if convolution_loop.applies(*arguments) and _one_example_is_enough_work(a, d, window):
        return convolution_loop
    if columns:
        return convolution_columns
    if convolution_grid.applies(*arguments):
        return convolution_grid
    return convolution_direct


def _gram_is_cheaper(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    inputs, outputs = math.prod(a.shape[1:-1]), math.prod(d.shape[1:-1])
    inputs = outputs if window.is_pointwise else inputs
    channels, offsets = a.shape[-1], math.prod(window.kernel_size)
    gram = inputs**2 * channels + outputs**2 * (d.shape[-1] + offsets)
    return 2 * gram < outputs * channels * d.shape[-1] * offsets


def _one_example_is_enough_work(a: tf.Tensor, d: tf.Tensor, window: Window) -> bool:
    if not d.shape[1:].is_fully_defined():
        return False
    products = math.prod(d.shape[1:]) * a.shape[-1] * math.prod(window.kernel_size)
    return products > _ENOUGH_FOR_ONE_EXAMPLE[len(window.kernel_size)]
