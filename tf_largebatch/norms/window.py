"""Describes the geometry of a convolution: its padding, and the inputs that each kernel offset meets."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.norms.device import device
from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a convolution over any number of spatial axes, channels last."""

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str
    dilation_rate: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position sees a single input position."""
        return all(k == 1 for k in self.kernel_size)

    def over_rows(self) -> Window:
        """Returns the window with one more spatial axis in front, along which the kernel does not reach."""
        return Window((1, *self.kernel_size), (1, *self.strides), self.padding, (1, *self.dilation_rate))

    def padding_of(self, x: Any, output_sizes: list[Size]) -> list[list[Any]]:
        """Returns how many zeros the convolution puts before and after x along each spatial axis."""
        before_after: list[list[Any]] = []
        for size, out, k, s, r in zip(
            static_or_dynamic_shape(x)[1:-1],
            output_sizes,
            self.kernel_size,
            self.strides,
            self.dilation_rate,
            strict=True,
        ):
            reach = (k - 1) * r
            if self.padding == "valid":
                before_after.append([0, 0])
                continue
            if self.padding == "causal":
                before_after.append([reach, 0])
                continue
            total = (out - 1) * s + reach + 1 - size
            total = max(total, 0) if isinstance(total, int) else ops.maximum(total, 0)
            before_after.append([total // 2, total - total // 2])
        return before_after

    def pad(self, x: Any, output_sizes: list[Size]) -> Any:
        """Pads the spatial axes of x with zeros as the convolution does."""
        if self.padding == "valid" or (self.is_pointwise and all(s == 1 for s in self.strides)):
            return x
        return ops.pad(x, [[0, 0], *self.padding_of(x, output_sizes), [0, 0]])

    def shifted_inputs(self, x: Any, output_sizes: list[Size]) -> Iterator[Any]:
        """Yields the inputs that each kernel offset meets, in row-major order: [B, *output_sizes, C]."""
        x = self.pad(x, output_sizes)
        for offset in itertools.product(*(range(k) for k in self.kernel_size)):
            first = [o * r for o, r in zip(offset, self.dilation_rate, strict=True)]
            yield every(x, first, self.strides, output_sizes)


def every(x: Any, first: Sequence[int], strides: Sequence[int], counts: Sequence[Size]) -> Any:
    """Takes `count` positions, `stride` apart, from `first` on, along each spatial axis of x [B, ..., C]."""
    sizes = x.shape[1:-1]
    unstrided = all(s == 1 for s in strides)
    if unstrided and not any(first) and list(counts) == list(sizes):
        return x
    static = None not in tuple(x.shape[1:]) and all(isinstance(n, int) for n in counts)
    if unstrided or not static or device() != "cpu" or keras.backend.backend() == "jax":
        cut = (slice(f, f + (n - 1) * s + 1, s) for f, s, n in zip(first, strides, counts, strict=True))
        examples_and_cut = (slice(None), *cut)
        return x[examples_and_cut]
    # Gathering copies whole runs of C; TensorFlow's strided slice on a CPU goes element by element, five times slower.
    at = np.arange(math.prod(sizes)).reshape(sizes)
    at = at[tuple(slice(f, f + (n - 1) * s + 1, s) for f, s, n in zip(first, strides, counts, strict=True))]
    taken = ops.take(ops.reshape(x, [-1, math.prod(sizes), x.shape[-1]]), at.reshape(-1), axis=1)
    return ops.reshape(taken, [-1, *counts, x.shape[-1]])
