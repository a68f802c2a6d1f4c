"""Which of the forms of a convolution's norms is cheap on a CPU."""

from __future__ import annotations

import math
from types import ModuleType

import tensorflow as tf

from tf_largebatch.norms.kernels import convolution_direct, convolution_gram, convolution_grid, convolution_loop
from tf_largebatch.norms.kernels.window import Window


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[tf.Tensor, tf.Tensor] | None:
    """`||G_i||^2`, shape [B], and `sum_i G_i`; None where the norms are cheaper beside the ordinary kernel."""
    form = cheapest_form(a, d, window, groups)
    return None if form is convolution_gram else form.norms_and_gradient(a, d, window, groups)


def squared_norms(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tf.Tensor:
    """`||G_i||^2` in float32, shape [b]."""
    return cheapest_form(a, d, window, groups).squared_norms(a, d, window, groups)


def cheapest_form(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> ModuleType:
    """The module of the form to use, from the static shapes."""
    arguments = a, d, window, groups
    if convolution_gram.applies(*arguments) and _gram_is_cheaper(*arguments):
        return convolution_gram
    if window.is_pointwise:
        return convolution_direct
    if convolution_loop.applies(*arguments) and _one_example_is_enough_work(*arguments):
        return convolution_loop
    if convolution_grid.applies(*arguments):
        return convolution_grid
    return convolution_direct


def _gram_is_cheaper(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    inputs, outputs = math.prod(a.shape[1:-1]), math.prod(d.shape[1:-1])
    inputs = outputs if window.is_pointwise else inputs
    channels, offsets = a.shape[-1], math.prod(window.kernel_size)
    gram = inputs**2 * channels + outputs**2 * (d.shape[-1] + offsets)
    return 2 * gram < outputs * channels * d.shape[-1] * offsets


def _one_example_is_enough_work(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> bool:
    if not d.shape[1:].is_fully_defined():
        return False
    products = math.prod(d.shape[1:]) * a.shape[-1] * math.prod(window.kernel_size)
    return products > 2e7
