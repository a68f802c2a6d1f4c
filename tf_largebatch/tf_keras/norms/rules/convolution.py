"""Convolutions: the rules of Keras 3, at the names that tf_keras has for the variables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.convolution import bias_and_activation, convolution, depthwise, separable_convolution
from tf_largebatch.tf_keras.norms.registry import TF_KERAS

TF_KERAS.register(tf_keras.layers.Conv1D, tf_keras.layers.Conv2D, tf_keras.layers.Conv3D)(convolution)


@TF_KERAS.register(tf_keras.layers.DepthwiseConv1D, tf_keras.layers.DepthwiseConv2D)
def depthwise_convolution(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = activation(depthwise_conv(x, W) + b)`."""
    y = depthwise(layer, recorder, layer.depthwise_kernel, inputs)
    return bias_and_activation(layer, recorder, y)


def refuse_causal(layer: Any) -> str | None:
    """Only tf_keras pads a separable convolution causally."""
    return "padding='causal'" if layer.padding == "causal" else None


TF_KERAS.register(tf_keras.layers.SeparableConv1D, tf_keras.layers.SeparableConv2D, refuse=refuse_causal)(
    separable_convolution
)
