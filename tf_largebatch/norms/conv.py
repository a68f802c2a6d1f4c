"""Convolutions: `x` padded, `G_i[o] = sum_t x_{i, stride t + dilation o} (x) d_{i,t}` for every kernel offset o."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.chunks import chunk_of, norms_and_gradient_in_chunks
from tf_largebatch.norms.dense import activate, refuse_lora
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.shapes import Size, product, static_or_dynamic_shape
from tf_largebatch.norms.shift import add_bias
from tf_largebatch.norms.tap import Tap, sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a convolution over any number of spatial axes, channels last."""

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    dilation_rate: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position sees one input position only."""
        return all(k == 1 for k in self.kernel_size)

    def pad(self, x: tf.Tensor, output_sizes: list[Size]) -> tf.Tensor:
        """Pads the spatial axes of x with zeros as the convolution does."""
        if self.padding == "valid" or (self.is_pointwise and all(s == 1 for s in self.strides)):
            return x
        before_after: list[list[Any]] = [[0, 0]]
        for size, out, k, s, r in zip(
            static_or_dynamic_shape(x)[1:-1],
            output_sizes,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            strict=True,
        ):
            reach = (k - 1) * r
            if self.padding == "causal":
                before_after.append([reach, 0])
                continue
            total = (out - 1) * s + reach + 1 - size
            total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
            before_after.append([total // 2, total - total // 2])
        return tf.pad(x, [*before_after, [0, 0]])

    def shifted_inputs(self, x: tf.Tensor, output_sizes: list[Size]) -> Iterator[tf.Tensor]:
        """For each kernel offset in row-major order, the inputs it meets: [B, *output_sizes, C]."""
        x = self.pad(x, output_sizes)
        for offset in itertools.product(*(range(k) for k in self.kernel_size)):
            window = [slice(None)]
            for o, out, s, r in zip(offset, output_sizes, self.strides, self.dilation_rate, strict=True):
                window.append(slice(o * r, o * r + (out - 1) * s + 1, s))
            yield x if self.is_pointwise and all(s == 1 for s in self.strides) else x[tuple(window)]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`y = conv(a, w)`: `a` [B, ..., C], `w` [*kernel_size, C / groups, P], `y` [B, ..., P], channels last."""

    a: tf.Tensor
    window: Window
    groups: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, shape [b, *kernel_size, C / groups, P]."""
        parts = list(self._contributions_by_offset(self.a[examples], d[examples]))
        return tf.reshape(
            tf.stack(parts, axis=1), [-1, *self.window.kernel_size, parts[0].shape[-2], parts[0].shape[-1]]
        )

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly, chunk by chunk and offset by offset."""
        a, d = self.a[examples], d[examples]
        return self._in_chunks(a, d)[0]

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient: the ordinary weight-gradient kernel need not run."""
        return self._in_chunks(self.a, d)

    def _in_chunks(self, a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        channels, outputs = a.shape[-1] // self.groups, d.shape[-1]
        positions = math.prod(size or 1 for size in d.shape[1:-1])
        # What is held of each example is its shifted input and its contribution, of one kernel offset.
        chunk = chunk_of(4 * (positions * a.shape[-1] + channels * outputs))
        shape = [*self.window.kernel_size, channels, outputs]
        return norms_and_gradient_in_chunks(self._norms_and_gradient, a, d, chunk, shape)

    def _norms_and_gradient(self, a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        squares, gradients = [], []
        for part in self._contributions_by_offset(a, d):
            squares.append(sum_squares_per_example(part))
            gradients.append(tf.reduce_sum(tf.cast(part, tf.float32), axis=0))
        shape = [*self.window.kernel_size, *gradients[0].shape]
        return tf.add_n(squares), tf.reshape(tf.stack(gradients), shape)

    def _contributions_by_offset(self, a: tf.Tensor, d: tf.Tensor) -> Iterator[tf.Tensor]:
        """`G_i` of one kernel offset after the other, each [b, C / groups, P]."""
        sizes = static_or_dynamic_shape(d)
        positions = product(sizes[1:-1])
        channels, outputs = a.shape[-1] // self.groups, d.shape[-1]
        d_flat = tf.reshape(d, [sizes[0], positions, outputs])
        for shifted in self.window.shifted_inputs(a, sizes[1:-1]):
            if self.groups == 1:
                flat = tf.reshape(shifted, [sizes[0], positions, channels])
                yield tf.matmul(flat, d_flat, transpose_a=True)
            else:
                yield self._grouped(shifted, d_flat, sizes[0], positions, channels, outputs)

    def _grouped(
        self, shifted: tf.Tensor, d: tf.Tensor, batch: Size, positions: Size, channels: int, outputs: int
    ) -> tf.Tensor:
        """Group g joins the g-th C / groups inputs with the g-th P / groups outputs."""
        a = tf.reshape(shifted, [batch, positions, self.groups, channels])
        d = tf.reshape(d, [batch, positions, self.groups, outputs // self.groups])
        return tf.reshape(tf.einsum("btgc,btgp->bcgp", a, d), [batch, channels, outputs])


@dataclasses.dataclass(frozen=True)
class DepthwiseConvolution:
    """`y[..., c m] = conv(a[..., c], w[..., c, m])`: `w` [*kernel_size, C, M], `y` [B, ..., C M], channels last."""

    a: tf.Tensor
    window: Window

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, shape [b, *kernel_size, C, M]."""
        a, d = self.a[examples], d[examples]
        sizes = static_or_dynamic_shape(d)
        channels = a.shape[-1]
        multiplier = d.shape[-1] // channels
        spatial = list(range(1, d.shape.rank - 1))
        d = tf.reshape(d, [*sizes[:-1], channels, multiplier])
        parts = [
            tf.reduce_sum(shifted[..., tf.newaxis] * d, axis=spatial)
            for shifted in self.window.shifted_inputs(a, sizes[1:-1])
        ]
        return tf.reshape(tf.stack(parts, axis=1), [sizes[0], *self.window.kernel_size, channels, multiplier])

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly: the contributions are as small as the kernel."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        contributions = self.contributions(d, slice(None))
        return sum_squares_per_example(contributions), tf.reduce_sum(contributions, axis=0)


def layer_window(layer: Any) -> Window:
    """The geometry of a Keras convolution layer."""
    return Window(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)


def channels_last(layer: Any, t: tf.Tensor) -> tf.Tensor:
    """The tensor with its channels on the last axis."""
    if layer.data_format == "channels_last":
        return t
    return tf.transpose(t, [0, *range(2, t.shape.rank), 1])


def channels_as_in(layer: Any, t: tf.Tensor) -> tf.Tensor:
    """The inverse of `channels_last`."""
    if layer.data_format == "channels_last":
        return t
    return tf.transpose(t, [0, t.shape.rank - 1, *range(1, t.shape.rank - 1)])


def record_channels_last(layer: Any, tap: Tap, variable: Any, y: tf.Tensor, contraction: Any) -> tf.Tensor:
    """Records the channels-last view of a layer's output and returns the output in the layer's own format."""
    return channels_as_in(layer, tap.record(variable, channels_last(layer, y), contraction))


def bias_and_activation(layer: Any, tap: Tap, y: tf.Tensor) -> tf.Tensor:
    """The common end of all convolution layers."""
    if layer.use_bias:
        axis = y.shape.rank - 1 if layer.data_format == "channels_last" else 1
        shape = [1] * y.shape.rank
        shape[axis] = y.shape[axis]
        y = add_bias(tap, layer.bias, y, tuple(shape))
    return activate(layer, y)


@KERAS.register(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    methods=("call", "convolution_op"),
    refuse=refuse_lora,
)
def convolution(layer: Any, tap: Tap, inputs: tf.Tensor) -> tf.Tensor:
    """`y = activation(conv(x, W) + b)`."""
    kernel = tap.value(layer.kernel)
    padded, padding = inputs, layer.padding
    if padding == "causal":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        left = [[0, 0], [reach, 0], [0, 0]] if layer.data_format == "channels_last" else [[0, 0], [0, 0], [reach, 0]]
        padded, padding = tf.pad(inputs, left), "valid"
    y = ops.conv(
        padded,
        kernel,
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    contraction = Convolution(channels_last(layer, inputs), layer_window(layer), layer.groups)
    y = record_channels_last(layer, tap, layer.kernel, y, contraction)
    return bias_and_activation(layer, tap, y)


@KERAS.register(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def depthwise_convolution(layer: Any, tap: Tap, inputs: tf.Tensor) -> tf.Tensor:
    """`y = activation(depthwise_conv(x, W) + b)`."""
    y = depthwise(layer, tap, layer.kernel, inputs)
    return bias_and_activation(layer, tap, y)


@KERAS.register(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def separable_convolution(layer: Any, tap: Tap, inputs: tf.Tensor) -> tf.Tensor:
    """`y = activation(conv(depthwise_conv(x, W_d), W_p) + b)`, the second convolution pointwise."""
    hidden = depthwise(layer, tap, layer.depthwise_kernel, inputs)
    y = ops.conv(hidden, tap.value(layer.pointwise_kernel), strides=1, padding="valid", data_format=layer.data_format)
    ones = (1,) * len(layer.kernel_size)
    contraction = Convolution(channels_last(layer, hidden), Window(ones, ones, "valid", ones), groups=1)
    y = record_channels_last(layer, tap, layer.pointwise_kernel, y, contraction)
    return bias_and_activation(layer, tap, y)


def depthwise(layer: Any, tap: Tap, kernel: Any, inputs: tf.Tensor) -> tf.Tensor:
    """A layer's depthwise convolution, recorded."""
    y = ops.depthwise_conv(
        inputs,
        tap.value(kernel),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    contraction = DepthwiseConvolution(channels_last(layer, inputs), layer_window(layer))
    return record_channels_last(layer, tap, kernel, y, contraction)
