"""Convolutions: `x` padded, `G_i[o] = sum_t x_{i, stride t + dilation o} (x) d_{i,t}` for every kernel offset o."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tf_largebatch.norms.kernels import convolution as convolution_kernels
from tf_largebatch.norms.kernels import depthwise as depthwise_kernels
from tf_largebatch.norms.recorder import Contraction, Recorder, Tensor
from tf_largebatch.norms.rules.bias import add_bias
from tf_largebatch.norms.rules.combinators import WithoutFirstAxis
from tf_largebatch.norms.rules.dense import activate
from tf_largebatch.norms.shapes import Size, of_examples, split_rows, static_or_dynamic_size
from tf_largebatch.norms.window import Window


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`y = conv(a, w)`: `a` [B, ..., C], `w` [*kernel_size, C / groups, P], `y` [B, ..., P], channels last."""

    a: Tensor
    window: Window
    groups: int

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` in float32, shape [b, *kernel_size, C / groups, P]."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        return convolution_kernels.contributions(a, d, self.window, self.groups)

    def all_norms_are_free(self, d: Tensor) -> bool:
        """Returns whether the norms of all examples, with the gradient, cost no more than a few beside it."""
        return convolution_kernels.all_norms_are_free(self.a, d, self.window, self.groups)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||G_i||^2`, by the form that suits the device and the shapes."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        return convolution_kernels.squared_norms(a, d, self.window, self.groups)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns both, or None where the norms are cheaper beside the ordinary weight-gradient kernel."""
        return convolution_kernels.norms_and_gradient(self.a, d, self.window, self.groups)

    def over_rows(self, batch: Size, rows: Size) -> Contraction:
        """Returns the contraction in which `rows` consecutive rows of `a` belong to one example."""
        return WithoutFirstAxis(Convolution(split_rows(self.a, batch, rows), self.window.over_rows(), self.groups))


@dataclasses.dataclass(frozen=True)
class DepthwiseConvolution:
    """`y[..., c m] = conv(a[..., c], w[..., c, m])`: `w` [*kernel_size, C, M], `y` [B, ..., C M], channels last.

    `shape` is the variable's: that of `w`, or [*kernel_size, 1, C M] in a convolution with a group for every channel.
    """

    a: Tensor
    window: Window
    shape: tuple[int, ...]

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` in float32, shape [b, *shape]."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        found = depthwise_kernels.contributions(a, d, self.window)
        return ops.reshape(found, [static_or_dynamic_size(d, 0), *self.shape])

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||G_i||^2`, by the form that suits the device and the shapes."""
        a, d = of_examples(self.a, examples), of_examples(d, examples)
        return depthwise_kernels.norms_and_gradient(a, d, self.window)[0]

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both: the contributions add up to the gradient."""
        squares, gradient = depthwise_kernels.norms_and_gradient(self.a, d, self.window)
        return squares, ops.reshape(gradient, self.shape)

    def over_rows(self, batch: Size, rows: Size) -> DepthwiseConvolution:
        """Returns the contraction in which `rows` consecutive rows of `a` belong to one example."""
        return DepthwiseConvolution(split_rows(self.a, batch, rows), self.window.over_rows(), self.shape)


def layer_window(layer: Any) -> Window:
    """Returns the geometry of a Keras convolution layer."""
    return Window(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)


def channels_last(layer: Any, t: Tensor) -> Tensor:
    """Returns the tensor with its channels on the last axis."""
    if layer.data_format == "channels_last":
        return t
    return ops.transpose(t, [0, *range(2, len(t.shape)), 1])


def channels_as_in(layer: Any, t: Tensor) -> Tensor:
    """Undoes `channels_last`."""
    if layer.data_format == "channels_last":
        return t
    return ops.transpose(t, [0, len(t.shape) - 1, *range(1, len(t.shape) - 1)])


def record_channels_last(layer: Any, recorder: Recorder, variable: Any, y: Tensor, contraction: Any) -> Tensor:
    """Records the channels-last view of a layer's output and returns the output in the layer's own format."""
    return channels_as_in(layer, recorder.record(variable, channels_last(layer, y), contraction))


def bias_and_activation(layer: Any, recorder: Recorder, y: Tensor) -> Tensor:
    """Adds the bias and applies the activation, as every convolution layer does last."""
    if layer.use_bias:
        axis = len(y.shape) - 1 if layer.data_format == "channels_last" else 1
        shape = [1] * len(y.shape)
        shape[axis] = y.shape[axis]
        y = add_bias(recorder, layer.bias, y, tuple(shape))
    return activate(layer, y)


def convolution(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = activation(conv(x, W) + b)`."""
    kernel = recorder.value(layer.kernel)
    padded, padding = inputs, layer.padding
    if padding == "causal":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        left = [[0, 0], [reach, 0], [0, 0]] if layer.data_format == "channels_last" else [[0, 0], [0, 0], [reach, 0]]
        padded, padding = ops.pad(inputs, left), "valid"
    y = ops.conv(
        padded,
        kernel,
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    a, window = channels_last(layer, inputs), layer_window(layer)
    contraction: Contraction
    if 1 < layer.groups == a.shape[-1]:
        contraction = DepthwiseConvolution(a, window, tuple(layer.kernel.shape))
    else:
        contraction = Convolution(a, window, layer.groups)
    y = record_channels_last(layer, recorder, layer.kernel, y, contraction)
    return bias_and_activation(layer, recorder, y)


def depthwise_convolution(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = activation(depthwise_conv(x, W) + b)`."""
    y = depthwise(layer, recorder, layer.kernel, inputs)
    return bias_and_activation(layer, recorder, y)


def separable_convolution(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = activation(conv(depthwise_conv(x, W_d), W_p) + b)`, the second convolution pointwise."""
    hidden = depthwise(layer, recorder, layer.depthwise_kernel, inputs)
    y = ops.conv(
        hidden, recorder.value(layer.pointwise_kernel), strides=1, padding="valid", data_format=layer.data_format
    )
    ones = (1,) * len(layer.kernel_size)
    contraction = Convolution(channels_last(layer, hidden), Window(ones, ones, "valid", ones), groups=1)
    y = record_channels_last(layer, recorder, layer.pointwise_kernel, y, contraction)
    return bias_and_activation(layer, recorder, y)


def depthwise(layer: Any, recorder: Recorder, kernel: Any, inputs: Tensor) -> Tensor:
    """Records and returns a layer's depthwise convolution."""
    y = ops.depthwise_conv(
        inputs,
        recorder.value(kernel),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    contraction = DepthwiseConvolution(channels_last(layer, inputs), layer_window(layer), tuple(kernel.shape))
    return record_channels_last(layer, recorder, kernel, y, contraction)
