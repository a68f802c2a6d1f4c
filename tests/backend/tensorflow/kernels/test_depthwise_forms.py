"""Each form of a depthwise convolution's norms, chosen explicitly, against the sum over positions.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels import (
    depthwise,
    depthwise_correlation,
    depthwise_direct,
    depthwise_kernel,
)
from tf_largebatch.norms.device import compiling_for
from tf_largebatch.norms.window import Window

# name: input sizes, kernel, strides, padding, dilation, outputs of a channel
GEOMETRIES = {
    "same": ((7, 6), (3, 2), (1, 1), "same", (1, 1), 1),
    "stride 2, multiplier": ((7, 6), (3, 2), (2, 2), "same", (1, 1), 2),
    "stride 2, valid, rest unseen": ((8, 7), (3, 3), (2, 2), "valid", (1, 1), 1),
    "stride 3": ((7, 6), (3, 2), (3, 3), "same", (1, 1), 1),
    "uneven strides": ((9, 8), (3, 3), (1, 2), "same", (1, 1), 1),
    "dilated": ((9, 8), (3, 3), (1, 1), "same", (2, 2), 2),
    "uneven dilation": ((9, 8), (3, 2), (1, 1), "same", (2, 1), 1),
    "map smaller than the kernel": ((2, 3), (5, 5), (1, 1), "same", (1, 1), 1),
    "one position": ((3, 3), (3, 3), (1, 1), "valid", (1, 1), 1),
    "1d": ((9,), (4,), (1,), "same", (1,), 1),
    "1d, stride 2": ((9,), (3,), (2,), "same", (1,), 2),
    "1d causal, dilated": ((9,), (3,), (1,), "causal", (2,), 1),
    "rows": ((2, 7, 6), (1, 3, 2), (1, 2, 2), "same", (1, 1, 1), 2),
    "rows, dilated": ((3, 7, 6), (1, 3, 3), (1, 1, 1), "same", (1, 2, 2), 1),
    "rows of one axis": ((2, 9), (1, 4), (1, 1), "same", (1, 1), 1),
    "3d": ((3, 4, 3), (2, 2, 2), (1, 1, 1), "same", (1, 1, 1), 1),
}
FORMS = {
    "direct": depthwise_direct,
    "kernel": depthwise_kernel,
    "correlation": depthwise_correlation,
    "chosen": depthwise,
}
BATCH, CHANNELS = 5, 3


def example(name, dtype="float32"):
    """Random inputs and output gradients of a geometry."""
    sizes, kernel, strides, padding, rates, multiplier = GEOMETRIES[name]
    if padding == "valid":
        out = [(n - (k - 1) * r - 1) // s + 1 for n, k, s, r in zip(sizes, kernel, strides, rates, strict=True)]
    else:
        out = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    rng = np.random.default_rng(0)
    a = tf.constant(rng.normal(size=(BATCH, *sizes, CHANNELS)), dtype)
    d = tf.constant(rng.normal(size=(BATCH, *out, CHANNELS * multiplier)), dtype)
    return a, d, Window(kernel, strides, padding, rates)


def reference(a, d, window):
    """`||G_i||^2` and `sum_i G_i`: in float64, position by position."""
    a, d = a.numpy().astype("float64"), d.numpy().astype("float64")
    a = np.pad(a, [(0, 0), *window.padding_of(tf.constant(a), list(d.shape[1:-1])), (0, 0)])
    multiplier = d.shape[-1] // a.shape[-1]
    g = np.zeros((len(a), *window.kernel_size, a.shape[-1], multiplier))
    for offset in np.ndindex(*window.kernel_size):
        for t in np.ndindex(*d.shape[1:-1]):
            at = tuple(
                p * s + o * r for p, o, s, r in zip(t, offset, window.strides, window.dilation_rate, strict=True)
            )
            y = d[(slice(None), *t)].reshape(len(a), a.shape[-1], multiplier)
            g[(slice(None), *offset)] += a[(slice(None), *at)][..., None] * y
    return (g**2).sum(tuple(range(1, g.ndim))), g.sum(0)


def applies(form, *arguments):
    return not hasattr(form, "applies") or form.applies(*arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_form(name, form):
    arguments, form = example(name), FORMS[form]
    if not applies(form, *arguments):
        assert (
            "3d" in name
            or "uneven" in name
            or (form is depthwise_kernel and ("1d" in name or "rows" in name or name == "dilated"))
        )
        return
    squares, gradient = form.norms_and_gradient(*arguments)
    expected, sums = reference(*arguments)
    assert squares.dtype == gradient.dtype == tf.float32
    # float32 sums of fifty products.
    np.testing.assert_allclose(squares, expected, rtol=2e-5)
    np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.each_value
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("form", ["kernel", "correlation"])
def test_batches_unknown_when_traced(form, jit, monkeypatch):
    a, d, window = example("stride 2, multiplier")
    module = FORMS[form]
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * (math.prod(a.shape[1:]) + math.prod(d.shape[1:])))
    run = tf.function(
        lambda a, d: module.norms_and_gradient(a, d, window),
        input_signature=[tf.TensorSpec([None, *t.shape[1:]]) for t in (a, d)],
        autograph=False,
        jit_compile=jit,
    )
    for examples in (5, 4, 1, 0):
        squares, gradient = run(a[:examples], d[:examples])
        expected, sums = reference(a[:examples], d[:examples], window)
        np.testing.assert_allclose(squares, expected, rtol=2e-5)
        np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_other_dtypes(form, dtype):
    arguments = example("same", dtype)
    # The inputs are exact in any dtype here; products and sums are float32 in all of them.
    np.testing.assert_allclose(FORMS[form].norms_and_gradient(*arguments)[0], reference(*arguments)[0], rtol=2e-5)


def test_the_choice():
    def chosen(sizes, kernel, rate=1):
        window = Window((kernel,) * len(sizes), (1,) * len(sizes), "same", (rate,) * len(sizes))
        t = tf.zeros([2, *sizes, 3])
        return depthwise.cheapest_form(t, t, window)

    assert chosen((48, 48), 3) is depthwise_kernel
    assert chosen((2, 2), 3) is depthwise_correlation
    assert chosen((7, 7), 5) is depthwise_correlation
    assert chosen((28, 28), 3, rate=2) is depthwise_correlation
    assert chosen((64,), 3) is depthwise_correlation
    assert chosen((4, 4, 4), 3) is depthwise_direct
    with compiling_for("gpu"):
        assert chosen((48, 48), 3) is depthwise_direct
