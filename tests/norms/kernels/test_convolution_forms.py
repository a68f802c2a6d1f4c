"""Each form of a convolution's norms, chosen explicitly, against the sum over positions and kernel offsets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import (
    convolution,
    convolution_columns,
    convolution_direct,
    convolution_gram,
    convolution_grid,
    convolution_loop,
)
from tf_largebatch.backend.tensorflow.order import after
from tf_largebatch.norms.device import compiling_for
from tf_largebatch.norms.window import Window, every

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
    "1d, long, strided": ((41,), (8,), (3,), "valid", (1,), 1, 1, 4),
    "1d, stride above kernel": ((11,), (2,), (3,), "valid", (1,), 1, 2, 4),
    "one row of windows": ((2, 24), (1, 8), (1, 4), "same", (1, 1), 1, 1, 5),
}
FORMS = {
    "direct": convolution_direct,
    "columns": convolution_columns,
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
        assert (
            groups > 1
            or (form is convolution_loop and (max(window.dilation_rate) > 1 or window.padding == "causal"))
            or (form is convolution_columns and window.dilation_rate[-1] > 1)
            or (form is convolution_gram and len(window.kernel_size) == 3)
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
@pytest.mark.parametrize("form", ["direct", "columns", "grid", "loop", "gram"])
def test_chunks_and_batches_in_a_graph(form, batch, chunk, jit, monkeypatch):
    a, d, window, groups = example("stride 2", batch or BATCH)
    per_example = 4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:]))
    monkeypatch.setattr(convolution_grid, "CHUNK_BYTES", chunk * per_example)
    monkeypatch.setattr(convolution_gram, "CHUNK_BYTES", chunk * 4 * math.prod(a.shape[1:-1]) ** 2)
    for module in (convolution_direct, convolution_columns):
        monkeypatch.setattr(module, "chunk_of", lambda size: chunk)
    specs = [tf.TensorSpec([batch, *t.shape[1:]], t.dtype) for t in (a, d)]

    @tf.function(jit_compile=jit, input_signature=specs)
    def run(a, d):
        module = FORMS[form]
        if hasattr(module, "norms_and_gradient"):
            return module.norms_and_gradient(a, d, window, groups)
        return module.squared_norms(a, d, window, groups), None

    # Unknown when traced: a batch that is no whole number of chunks, one that is, one below a chunk, and none.
    for examples in [batch] if batch else [5, 4, 1, 0]:
        squares, gradient = run(a[:examples], d[:examples])
        expected, sums = reference(a[:examples], d[:examples], window, groups)
        np.testing.assert_allclose(squares, expected, rtol=2e-5)
        if gradient is not None:
            np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-5 * np.abs(sums).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["same", "stride 2", "pointwise"])
def test_other_dtypes(name, form, dtype):
    arguments = example(name, dtype=dtype)
    # The inputs are exact in any dtype here; products and sums are float32 in all of them.
    np.testing.assert_allclose(FORMS[form].squared_norms(*arguments), reference(*arguments)[0], rtol=2e-5)


@pytest.mark.parametrize("form", ["direct", "columns", "grid", "loop"])
def test_sums_do_not_overflow_in_float16(form):
    # A contribution of 256 positions of 512 each, 2^17, is above the largest float16; those of two examples cancel.
    a = tf.fill([2, 16, 16, 2], tf.constant(512.0, tf.float16))
    d = tf.concat([tf.ones([1, 15, 15, 3], tf.float16), -tf.ones([1, 15, 15, 3], tf.float16)], axis=0)
    window = Window((2, 2), (1, 1), "valid", (1, 1))
    squares, gradient = FORMS[form].norms_and_gradient(a, d, window, 1)
    np.testing.assert_allclose(squares, [24 * (15.0**2 * 512) ** 2] * 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def test_the_choice():
    def chosen(sizes, out, channels, outputs, kernel, stride=1, groups=1):
        window = Window((kernel,) * len(sizes), (stride,) * len(sizes), "same", (1,) * len(sizes))
        a, d = tf.zeros([2, *sizes, channels]), tf.zeros([2, *out, outputs])
        return convolution.cheapest_form(a, d, window, groups)

    assert chosen((7, 7), (7, 7), 64, 64, 3) is convolution_gram
    assert chosen((32, 32), (32, 32), 16, 16, 3) is convolution_grid
    assert chosen((56, 56), (56, 56), 64, 64, 3) is convolution_loop
    assert chosen((20, 20), (20, 20), 32, 64, 1) is convolution_direct
    assert chosen((2, 2), (2, 2), 64, 64, 1) is convolution_gram
    assert chosen((9, 9), (9, 9), 8, 8, 3, groups=2) is convolution_direct
    assert chosen((28, 28), (28, 28), 1, 32, 3) is convolution_columns
    assert chosen((8000,), (2000,), 1, 64, 80, stride=4) is convolution_columns
    assert chosen((112, 112), (56, 56), 3, 64, 7, stride=2) is convolution_loop
    assert chosen((16, 32, 32), (16, 32, 32), 16, 32, 3) is convolution_loop
    assert chosen((4, 4, 4), (4, 4, 4), 8, 8, 3) is convolution_grid
    with compiling_for("gpu"):
        assert chosen((28, 28), (28, 28), 1, 32, 3) is convolution_direct


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
    np.testing.assert_array_equal(after([t], d)[0], t)
