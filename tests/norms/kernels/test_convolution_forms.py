"""Each form of a convolution's norms, chosen explicitly, against the sum over positions and kernel offsets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch.norms.kernels import (
    chunks,
    convolution,
    convolution_direct,
    convolution_gram,
    convolution_grid,
    convolution_loop,
    depthwise,
)
from tf_largebatch.norms.kernels.window import Window, every
from tf_largebatch.norms.rules.convolution import DepthwiseConvolution

# name: input sizes, kernel, strides, padding, dilation, groups, input and output channels
GEOMETRIES = {
    "1d": ((9,), (3,), (1,), "same", (1,), 1, 3, 4),
    "1d causal, dilated": ((9,), (3,), (1,), "causal", (2,), 1, 3, 4),
    "1d, stride 3": ((11,), (4,), (3,), "valid", (1,), 1, 3, 4),
    "same": ((6, 7), (3, 3), (1, 1), "same", (1, 1), 1, 3, 4),
    "valid": ((6, 7), (3, 2), (1, 1), "valid", (1, 1), 1, 3, 4),
    "16 channels": ((5, 5), (3, 3), (1, 1), "same", (1, 1), 1, 16, 16),
    "stride 2": ((7, 8), (3, 3), (2, 2), "same", (1, 1), 1, 3, 4),
    "stride 2, valid, rest unseen": ((8, 9), (3, 3), (2, 2), "valid", (1, 1), 1, 3, 4),
    "7 x 7, stride 2": ((13, 12), (7, 7), (2, 2), "valid", (1, 1), 1, 3, 4),
    "uneven": ((9, 8), (2, 5), (1, 2), "same", (1, 1), 1, 2, 4),
    "dilated": ((9, 9), (3, 3), (1, 1), "same", (2, 2), 1, 3, 4),
    "dilated, stride 2": ((9, 9), (3, 3), (2, 2), "valid", (2, 2), 1, 3, 4),
    "stride above kernel": ((9, 9), (2, 2), (3, 3), "same", (1, 1), 1, 3, 4),
    "pointwise": ((5, 4), (1, 1), (1, 1), "same", (1, 1), 1, 6, 4),
    "pointwise, stride 2": ((6, 5), (1, 1), (2, 2), "same", (1, 1), 1, 6, 4),
    "one position": ((3, 3), (3, 3), (1, 1), "valid", (1, 1), 1, 6, 5),
    "wide, small map": ((2, 2), (3, 3), (1, 1), "same", (1, 1), 1, 24, 20),
    "groups": ((6, 6), (3, 3), (1, 1), "same", (1, 1), 2, 6, 4),
    "3d": ((4, 5, 4), (2, 2, 2), (1, 2, 1), "same", (1, 1, 1), 1, 2, 3),
}
FORMS = {
    "direct": convolution_direct,
    "grid": convolution_grid,
    "loop": convolution_loop,
    "gram": convolution_gram,
    "chosen": convolution,
}
BATCH = 5


def example(name: str, batch: int = BATCH, dtype: str = "float32"):
    """Random inputs and output gradients of a geometry."""
    sizes, kernel, strides, padding, rates, groups, channels, outputs = GEOMETRIES[name]
    window = Window(kernel, strides, padding, rates)
    rng = np.random.default_rng(0)
    if padding == "valid":
        out = [(n - (k - 1) * r - 1) // s + 1 for n, k, s, r in zip(sizes, kernel, strides, rates, strict=True)]
    else:
        out = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    a = tf.constant(rng.normal(size=(batch, *sizes, channels)), dtype)
    return a, tf.constant(rng.normal(size=(batch, *out, outputs)), dtype), window, groups


def reference(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """`||G_i||^2` and `sum_i G_i`: in float64, kernel offset by kernel offset and position by position."""
    a, d = a.numpy().astype("float64"), d.numpy().astype("float64")
    a = np.pad(a, [(0, 0), *window.padding_of(tf.constant(a), list(d.shape[1:-1])), (0, 0)])
    channels, outputs = a.shape[-1] // groups, d.shape[-1] // groups
    g = np.zeros((len(a), *window.kernel_size, channels, groups * outputs))
    for offset in np.ndindex(*window.kernel_size):
        for t in np.ndindex(*d.shape[1:-1]):
            at = tuple(
                p * s + o * r for p, o, s, r in zip(t, offset, window.strides, window.dilation_rate, strict=True)
            )
            for j in range(groups):
                x = a[(slice(None), *at)][:, j * channels : (j + 1) * channels]
                y = d[(slice(None), *t)][:, j * outputs : (j + 1) * outputs]
                g[(slice(None), *offset, slice(None), slice(j * outputs, (j + 1) * outputs))] += np.einsum(
                    "bc,bp->bcp", x, y
                )
    return (g**2).sum(tuple(range(1, g.ndim))), g.sum(0)


def applies(form, *arguments) -> bool:
    return not hasattr(form, "applies") or form.applies(*arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_form(name, form):
    arguments, form = example(name), FORMS[form]
    if not applies(form, *arguments):
        _, _, window, groups = arguments
        dilated = any(r > 1 for r in window.dilation_rate)
        axes = len(window.kernel_size)
        assert (
            groups > 1
            or (form is convolution_loop and (dilated or axes != 2))
            or (form is convolution_gram and axes == 3)
        )
        return
    squares, gradient = reference(*arguments)
    # float32 sums of a few hundred products.
    np.testing.assert_allclose(form.squared_norms(*arguments), squares, rtol=2e-5)
    together = form.norms_and_gradient(*arguments) if hasattr(form, "norms_and_gradient") else None
    if together is not None:
        assert together[0].dtype == together[1].dtype == tf.float32
        np.testing.assert_allclose(together[0], squares, rtol=2e-5)
        np.testing.assert_allclose(together[1], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("batch, chunk", [(1, 4), (4, 4), (5, 2), (None, 2)])
@pytest.mark.parametrize("form", ["direct", "grid", "loop", "gram"])
def test_chunks_and_batches_in_a_graph(form, batch, chunk, jit, monkeypatch):
    if batch is None and jit:
        return  # XLA compiles for one batch size
    a, d, window, groups = example("stride 2", batch or BATCH)
    per_example = 4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:]))
    monkeypatch.setattr(convolution_grid, "CHUNK_BYTES", chunk * per_example)
    monkeypatch.setattr(convolution_gram, "CHUNK_BYTES", chunk * 4 * math.prod(a.shape[1:-1]) ** 2)
    monkeypatch.setattr(convolution_direct, "chunk_of", lambda size: chunk)
    specs = [tf.TensorSpec([batch, *t.shape[1:]], t.dtype) for t in (a, d)]

    @tf.function(jit_compile=jit, input_signature=specs)
    def run(a, d):
        module = FORMS[form]
        if hasattr(module, "norms_and_gradient"):
            return module.norms_and_gradient(a, d, window, groups)
        return module.squared_norms(a, d, window, groups), None

    squares, gradient = run(a, d)
    expected, sums = reference(a, d, window, groups)
    np.testing.assert_allclose(squares, expected, rtol=2e-5)
    if gradient is not None:
        np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-5 * np.abs(sums).max())


@pytest.mark.parametrize("dtype, rtol", [("float16", 5e-3), ("bfloat16", 4e-2), ("float64", 2e-5)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["same", "stride 2", "pointwise"])
def test_other_dtypes(name, form, dtype, rtol):
    arguments = example(name, dtype=dtype)
    # A rounding of each contribution to 11 or 8 bits, squared.
    found = tf.cast(FORMS[form].squared_norms(*arguments), tf.float32)
    np.testing.assert_allclose(found, reference(*arguments)[0], rtol=rtol)


def test_the_choice():
    def chosen(sizes, out, channels, outputs, kernel, stride=1, groups=1):
        window = Window((kernel,) * 2, (stride,) * 2, "same", (1, 1))
        a, d = tf.zeros([2, *sizes, channels]), tf.zeros([2, *out, outputs])
        return convolution.cheapest_form(a, d, window, groups)

    assert chosen((7, 7), (7, 7), 64, 64, 3) is convolution_gram
    assert chosen((32, 32), (32, 32), 16, 16, 3) is convolution_grid
    assert chosen((56, 56), (56, 56), 64, 64, 3) is convolution_loop
    assert chosen((20, 20), (20, 20), 32, 64, 1) is convolution_direct
    assert chosen((2, 2), (2, 2), 64, 64, 1) is convolution_gram
    assert chosen((9, 9), (9, 9), 8, 8, 3, groups=2) is convolution_direct


def test_sizes_unknown_when_traced_take_a_form_that_needs_none():
    a, d, window, groups = example("same")
    run = tf.function(
        lambda a, d: convolution.norms_and_gradient(a, d, window, groups),
        input_signature=[tf.TensorSpec([None, None, None, t.shape[-1]]) for t in (a, d)],
    )
    squares, gradient = run(a, d)
    expected, sums = reference(a, d, window, groups)
    np.testing.assert_allclose(squares, expected, rtol=2e-5)
    np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-4)


def test_every():
    x = tf.random.normal([2, 7, 6, 3])
    np.testing.assert_array_equal(every(x, (1, 0), (2, 3), [3, 2]), x[:, 1:6:2, 0:4:3])
    np.testing.assert_array_equal(every(x, (1, 2), (1, 1), [3, 2]), x[:, 1:4, 2:4])
    assert every(x, (0, 0), (1, 1), [7, 6]) is x


def test_waiting_changes_nothing():
    t, d = tf.random.normal([3]), tf.random.normal([3])
    np.testing.assert_array_equal(chunks.not_before(t, d), t)


@pytest.mark.parametrize("batch, chunk", [(1, 4), (4, 4), (5, 2), (None, 2)])
@pytest.mark.parametrize(
    "stride, padding, multiplier", [(1, "same", 1), (2, "same", 2), (2, "valid", 1), (3, "same", 1)]
)
def test_depthwise_kernel(stride, padding, multiplier, batch, chunk, monkeypatch):
    window = Window((3, 2), (stride, stride), padding, (1, 1))
    rng = np.random.default_rng(0)
    out = [(n - k) // stride + 1 if padding == "valid" else -(-n // stride) for n, k in ((7, 3), (6, 2))]
    a = tf.constant(rng.normal(size=(batch or BATCH, 7, 6, 3)), tf.float32)
    d = tf.constant(rng.normal(size=(batch or BATCH, *out, 3 * multiplier)), tf.float32)
    monkeypatch.setattr(depthwise, "CHUNK_BYTES", chunk * 4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])))
    assert depthwise.applies(a, d, window)
    run = tf.function(
        lambda a, d: depthwise.norms_and_gradient(a, d, window),
        input_signature=[tf.TensorSpec([batch, *t.shape[1:]]) for t in (a, d)],
        autograph=False,
    )
    squares, gradient = run(a, d)
    slow = DepthwiseConvolution(a, window, (*window.kernel_size, 3, multiplier)).contributions(d, slice(None))
    np.testing.assert_allclose(squares, tf.reduce_sum(slow**2, [1, 2, 3, 4]), rtol=2e-5)
    np.testing.assert_allclose(gradient, tf.reduce_sum(slow, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, strides, rates", [((3,), (1,), (1,)), ((3, 3), (1, 2), (1, 1)), ((3, 3), (1, 1), (2, 2))]
)
def test_depthwise_kernel_does_not_apply(kernel, strides, rates):
    t = tf.zeros([2, *(9 for _ in kernel), 3])
    assert not depthwise.applies(t, t, Window(kernel, strides, "same", rates))
