"""Transposed convolutions: `G_i[o] = sum_t d_{i, stride t + dilation o} (x) x_{i,t}`, a convolution from `y` to `x`.

So the layer's input stands where a convolution has its output gradient, and the layer's output gradient where a
convolution has its input.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from tf_largebatch.norms.recorder import Contraction, Recorder, Tensor
from tf_largebatch.norms.rules.combinators import WithoutFirstAxis
from tf_largebatch.norms.rules.convolution import (
    Convolution,
    Window,
    bias_and_activation,
    channels_last,
    layer_window,
    record_channels_last,
)
from tf_largebatch.norms.shapes import Size, split_rows


@dataclasses.dataclass(frozen=True)
class TransposedConvolution:
    """`y = conv_transpose(a, w)`: `a` [B, ..., C], `w` [*kernel_size, P, C], `y` [B, ..., P], channels last."""

    a: Tensor
    window: Window

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` in float32, shape [b, *kernel_size, P, C]."""
        return self._convolution(d).contributions(self.a, examples)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||G_i||^2`, by the form that suits the device and the shapes."""
        return self._convolution(d).squared_norms(self.a, examples)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns both, or None where the norms are cheaper beside the ordinary weight-gradient kernel."""
        return self._convolution(d).norms_and_gradient(self.a)

    def over_rows(self, batch: Size, rows: Size) -> Contraction:
        """Returns the contraction in which `rows` consecutive rows of `a` belong to one example."""
        return WithoutFirstAxis(TransposedConvolution(split_rows(self.a, batch, rows), self.window.over_rows()))

    def _convolution(self, d: Tensor) -> Convolution:
        """Returns the convolution with this kernel that maps a tensor like `d` to one like `a`."""
        return Convolution(d, self.window, groups=1)


def transposed_convolution(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = activation(conv_transpose(x, W) + b)`."""
    y = ops.conv_transpose(
        inputs,
        recorder.value(layer.kernel),
        strides=list(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    contraction = TransposedConvolution(channels_last(layer, inputs), layer_window(layer))
    y = record_channels_last(layer, recorder, layer.kernel, y, contraction)
    return bias_and_activation(layer, recorder, y)
