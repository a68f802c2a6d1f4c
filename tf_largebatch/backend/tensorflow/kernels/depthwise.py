"""Chooses how a depthwise convolution's norms are computed, from the device and the shapes."""

from __future__ import annotations

from types import ModuleType

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import depthwise_correlation, depthwise_direct, depthwise_kernel
from tf_largebatch.backend.tensorflow.order import after
from tf_largebatch.norms.device import device
from tf_largebatch.norms.window import Window


def contributions(a: tf.Tensor, d: tf.Tensor, window: Window) -> tf.Tensor:
    """Returns the `G_i` in float32: the direct form."""
    return depthwise_direct.contributions(a, d, window)


def norms_and_gradient(a: tf.Tensor, d: tf.Tensor, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `||G_i||^2`, shape [B], and `sum_i G_i`, shape [*kernel_size, C, M]; both float32."""
    return cheapest_form(a, d, window).norms_and_gradient(*after([a], d), d, window)


def cheapest_form(a: tf.Tensor, d: tf.Tensor, window: Window) -> ModuleType:
    """Returns the module of the form to use; elsewhere than on a CPU the direct form.

    TensorFlow's weight-gradient kernel is two-thirds the time of the correlation for kernels of up to 3 x 3 on maps no
    smaller than they are. Beyond that it takes another way, which is 5 to 200 times as slow with that many channels.
    """
    if device() != "cpu":
        return depthwise_direct
    small = max(window.kernel_size) <= 3
    if small and depthwise_kernel.applies(a, d, window) and _is_inside(d, window):
        return depthwise_kernel
    return depthwise_correlation if depthwise_correlation.applies(a, d, window) else depthwise_direct


def _is_inside(d: tf.Tensor, window: Window) -> bool:
    return all(out >= kernel for out, kernel in zip(d.shape[1:-1], window.kernel_size, strict=True))
