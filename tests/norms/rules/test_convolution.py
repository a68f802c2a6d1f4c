"""The rules of convolutions by themselves: geometry, data formats, groups, and which contraction is recorded.

Convolutions with the channels first are not available in TensorFlow on CPUs. Here they transpose their inputs, so that
both formats of a rule are compared on every backend.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
from keras import layers as L
from keras import ops

from tf_largebatch.norms.kernels import convolution as convolution_kernels
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.combinators import WithoutFirstAxis
from tf_largebatch.norms.rules.convolution import (
    Convolution,
    DepthwiseConvolution,
    channels_as_in,
    channels_last,
    convolution,
    depthwise_convolution,
    layer_window,
    separable_convolution,
)
from tf_largebatch.norms.window import Window

BATCH, CHANNELS = 2, 4
SIZES = {1: (7,), 2: (6, 5), 3: (4, 3, 5)}
RNG = np.random.default_rng(0)


class Uses:
    """Stands in for a recorder: notes what is recorded."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, Any, Any]] = []

    def value(self, variable: Any) -> Any:
        return variable

    def record(self, variable: Any, y: Any, contraction: Any) -> Any:
        self.recorded.append((variable, ops.convert_to_numpy(y), contraction))
        return y


def channels_moved(t: Any, to: int) -> Any:
    return ops.moveaxis(t, -1 if to == 1 else 1, to)


@pytest.fixture
def channels_first_anywhere(monkeypatch):
    """Lets both operations take channels first, by those with channels last."""
    for name in ("conv", "depthwise_conv"):
        monkeypatch.setattr(ops, name, transposing(getattr(ops, name)))


def transposing(operation: Any) -> Any:
    def with_channels_first(inputs: Any, kernel: Any, data_format: str, **arguments: Any) -> Any:
        if data_format == "channels_last":
            return operation(inputs, kernel, data_format=data_format, **arguments)
        y = operation(channels_moved(inputs, -1), kernel, data_format="channels_last", **arguments)
        return channels_moved(y, 1)

    return with_channels_first


# Layer class, rank, arguments; the variables in the order of their uses with the contraction of each.
LAYERS = {
    "conv1d causal": (L.Conv1D, 1, dict(filters=3, kernel_size=3, padding="causal", dilation_rate=2), [Convolution]),
    "conv1d valid": (L.Conv1D, 1, dict(filters=5, kernel_size=2, strides=2), [Convolution]),
    "conv2d relu": (
        L.Conv2D,
        2,
        dict(filters=2, kernel_size=(3, 2), strides=2, padding="same", activation="relu"),
        [Convolution],
    ),
    "conv2d two groups": (L.Conv2D, 2, dict(filters=6, kernel_size=2, groups=2), [Convolution]),
    "conv2d groups of one": (L.Conv2D, 2, dict(filters=8, kernel_size=2, groups=CHANNELS), [DepthwiseConvolution]),
    "conv3d": (L.Conv3D, 3, dict(filters=2, kernel_size=2, dilation_rate=(1, 2, 1), use_bias=False), [Convolution]),
    "depthwise": (
        L.DepthwiseConv2D,
        2,
        dict(kernel_size=(2, 3), strides=2, depth_multiplier=2, activation="tanh"),
        [DepthwiseConvolution],
    ),
    "separable1d": (
        L.SeparableConv1D,
        1,
        dict(filters=2, kernel_size=3, strides=2, activation="relu"),
        [DepthwiseConvolution, Convolution],
    ),
    "separable2d": (
        L.SeparableConv2D,
        2,
        dict(filters=3, kernel_size=(3, 2), padding="same"),
        [DepthwiseConvolution, Convolution],
    ),
}
RULES = {
    L.DepthwiseConv2D: depthwise_convolution,
    L.SeparableConv1D: separable_convolution,
    L.SeparableConv2D: separable_convolution,
}


def built(case: str, data_format: str) -> Any:
    """The layer with weights that are the same in both formats, none zero."""
    kind, rank, arguments, _ = LAYERS[case]
    layer = kind(**arguments, data_format=data_format)
    last = data_format == "channels_last"
    layer.build((BATCH, *SIZES[rank], CHANNELS) if last else (BATCH, CHANNELS, *SIZES[rank]))
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return layer


@pytest.mark.usefixtures("channels_first_anywhere")
@pytest.mark.parametrize("case", LAYERS)
def test_both_data_formats(case):
    kind, rank, _, contractions = LAYERS[case]
    x = RNG.normal(size=(BATCH, *SIZES[rank], CHANNELS)).astype("float32")
    rule = RULES.get(kind, convolution)
    found = {}
    for data_format in ("channels_last", "channels_first"):
        layer, uses = built(case, data_format), Uses()
        y = rule(layer, uses, ops.convert_to_tensor(x if data_format == "channels_last" else np.moveaxis(x, -1, 1)))
        y = ops.convert_to_numpy(y)
        found[data_format] = y if data_format == "channels_last" else np.moveaxis(y, 1, -1), uses.recorded
        if data_format == "channels_last":
            expected = ops.convert_to_numpy(layer(x))
        assert [v for v, *_ in uses.recorded] == layer.trainable_variables
    for y, _ in found.values():
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    last, first = (recorded for _, recorded in found.values())
    assert [type(use) for *_, use in last] == [
        *contractions,
        *([Bias] if built(case, "channels_last").use_bias else []),
    ]
    for (_, y, use), (_, y_first, use_first) in zip(last, first, strict=True):
        assert type(use) is type(use_first)
        if isinstance(use, Bias):
            rank_of_y = len(y.shape)
            assert use.broadcast_shape == (1,) * (rank_of_y - 1) + (y.shape[-1],)
            assert use_first.broadcast_shape == (1, y.shape[-1]) + (1,) * (rank_of_y - 2)
            y_first = np.moveaxis(y_first, 1, -1)
        else:
            assert use.window == use_first.window
            np.testing.assert_array_equal(use_first.a, ops.convert_to_numpy(use.a))
        np.testing.assert_allclose(y_first, y, rtol=1e-5, atol=1e-6)


def test_the_geometry_is_the_layers():
    layer = L.Conv2D(3, (3, 2), strides=(2, 1), padding="same")
    assert layer_window(layer) == Window((3, 2), (2, 1), "same", (1, 1))
    layer = L.Conv1D(3, 3, dilation_rate=2, padding="causal")
    assert layer_window(layer) == Window((3,), (1,), "causal", (2,))
    layer, uses = built("separable2d", "channels_last"), Uses()
    separable_convolution(layer, uses, ops.ones((BATCH, *SIZES[2], CHANNELS)))
    assert [use.window for _, _, use in uses.recorded[:2]] == [
        Window((3, 2), (1, 1), "same", (1, 1)),
        Window((1, 1), (1, 1), "valid", (1, 1)),
    ]
    assert uses.recorded[1][2].groups == 1


@pytest.mark.parametrize("groups, filters, channels", [(1, 3, 1), (1, 3, 4), (2, 4, 4), (2, 4, 2), (4, 8, 4)])
def test_only_several_groups_of_one_channel_each_are_depthwise(groups, filters, channels):
    layer, uses = L.Conv1D(filters, 2, groups=groups), Uses()
    layer.build((BATCH, 5, channels))
    convolution(layer, uses, ops.ones((BATCH, 5, channels)))
    use = uses.recorded[0][2]
    assert isinstance(use, DepthwiseConvolution) == (groups == channels > 1)
    assert getattr(use, "groups", groups) == groups
    assert getattr(use, "shape", layer.kernel.shape) == tuple(layer.kernel.shape)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_channels_move_there_and_back(rank):
    last, first = (
        types.SimpleNamespace(data_format="channels_last"),
        types.SimpleNamespace(data_format="channels_first"),
    )
    x = RNG.normal(size=(BATCH, CHANNELS, *SIZES[rank])).astype("float32")
    moved = channels_last(first, x)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved), np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(ops.convert_to_numpy(channels_as_in(first, moved)), x)
    assert channels_last(last, x) is x and channels_as_in(last, x) is x


def test_rows_become_positions():
    a, window = ops.ones((6, 5, 2)), Window((3,), (2,), "same", (1,))
    of_rows = Convolution(a, window, 2).over_rows(3, 2)
    assert isinstance(of_rows, WithoutFirstAxis)
    assert of_rows.inner.window == Window((1, 3), (1, 2), "same", (1, 1)) and of_rows.inner.groups == 2
    assert tuple(of_rows.inner.a.shape) == (3, 2, 5, 2)
    of_rows = DepthwiseConvolution(a, window, (3, 2, 1)).over_rows(3, 2)
    assert of_rows.window == Window((1, 3), (1, 2), "same", (1, 1)) and of_rows.shape == (3, 2, 1)
    assert tuple(of_rows.a.shape) == (3, 2, 5, 2)


def test_contractions_do_not_change():
    window = Window((3,), (1,), "same", (1,))
    for frozen in Convolution(None, window, 1), DepthwiseConvolution(None, window, (3, 2, 1)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.a = None


def test_a_convolution_with_a_group_for_every_channel_has_the_variables_shape():
    a, d = (ops.convert_to_tensor(RNG.normal(size=size).astype("float32")) for size in ((BATCH, 5, 2), (BATCH, 4, 4)))
    contraction = DepthwiseConvolution(a, Window((2,), (1,), "valid", (1,)), (2, 1, 4))
    each = ops.convert_to_numpy(contraction.contributions(d, slice(None)))
    x, y = ops.convert_to_numpy(a), ops.convert_to_numpy(d)
    for offset, output in np.ndindex(2, 4):  # outputs 0 and 1 are of channel 0, 2 and 3 of channel 1
        expected = (x[:, offset : offset + 4, output // 2] * y[:, :, output]).sum(1)
        np.testing.assert_allclose(each[:, offset, 0, output], expected, rtol=1e-5, atol=1e-6)
    squares, gradient = contraction.norms_and_gradient(d)
    np.testing.assert_allclose(squares, (each**2).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(gradient, each.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(contraction.squared_norms(d, slice(1, 2)), squares[1:2], rtol=1e-5)


def test_the_kernels_choices_are_handed_on(monkeypatch):
    a, d, window = ops.ones((2, 4, 1)), ops.ones((2, 4, 3)), Window((3,), (1,), "same", (1,))
    contraction = Convolution(a, window, 1)
    for name in ("norms_and_gradient", "all_norms_are_free"):
        given = []
        monkeypatch.setattr(convolution_kernels, name, lambda *arguments, g=given: g.append(arguments) or "answer")
        assert getattr(contraction, name)(d) == "answer"
        assert given == [(a, d, window, 1)]
