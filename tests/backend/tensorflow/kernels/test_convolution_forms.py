"""Each form of a convolution's norms, chosen explicitly, against the sum over positions and kernel offsets.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from convolution_geometries import BATCH, GEOMETRIES, random_case, reference

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

FORMS = {
    "direct": convolution_direct,
    "columns": convolution_columns,
    "grid": convolution_grid,
    "loop": convolution_loop,
    "gram": convolution_gram,
    "chosen": convolution,
}


def example(name: str, batch: int = BATCH, dtype: str = "float32"):
    """The geometry's random case as tensors."""
    a, d, window, groups = random_case(name, batch)
    return tf.constant(a, dtype), tf.constant(d, dtype), window, groups


def expected(a: tf.Tensor, d: tf.Tensor, window: Window, groups: int):
    return reference(a.numpy(), d.numpy(), window, groups)


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
    squares, gradient = expected(*arguments)
    # float32 sums of a few hundred products.
    np.testing.assert_allclose(form.squared_norms(*arguments), squares, rtol=2e-5)
    together = form.norms_and_gradient(*arguments) if hasattr(form, "norms_and_gradient") else None
    if together is not None:
        assert together[0].dtype == together[1].dtype == tf.float32
        np.testing.assert_allclose(together[0], squares, rtol=2e-5)
        np.testing.assert_allclose(together[1], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.each_value
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

    @tf.function(jit_compile=jit, input_signature=specs, autograph=False)
    def run(a, d):
        module = FORMS[form]
        if hasattr(module, "norms_and_gradient"):
            return module.norms_and_gradient(a, d, window, groups)
        return module.squared_norms(a, d, window, groups), None

    # Unknown when traced: a batch that is no whole number of chunks, one that is, one below a chunk, and none.
    for examples in [batch] if batch else [5, 4, 1, 0]:
        squares, gradient = run(a[:examples], d[:examples])
        norms, sums = expected(a[:examples], d[:examples], window, groups)
        np.testing.assert_allclose(squares, norms, rtol=2e-5)
        if gradient is not None:
            np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-5 * np.abs(sums).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["same", "stride 2", "pointwise"])
def test_other_dtypes(name, form, dtype):
    arguments = example(name, dtype=dtype)
    # The inputs are exact in any dtype here; products and sums are float32 in all of them.
    np.testing.assert_allclose(FORMS[form].squared_norms(*arguments), expected(*arguments)[0], rtol=2e-5)


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
        autograph=False,
    )
    squares, gradient = run(a, d)
    norms, sums = expected(a, d, window, groups)
    np.testing.assert_allclose(squares, norms, rtol=2e-5)
    np.testing.assert_allclose(gradient, sums, rtol=1e-5, atol=1e-4)


def test_every():
    x = tf.random.normal([2, 7, 6, 3])
    np.testing.assert_array_equal(every(x, (1, 0), (2, 3), [3, 2]), x[:, 1:6:2, 0:4:3])
    np.testing.assert_array_equal(every(x, (1, 2), (1, 1), [3, 2]), x[:, 1:4, 2:4])
    assert every(x, (0, 0), (1, 1), [7, 6]) is x


def test_waiting_changes_nothing():
    t, d = tf.random.normal([3]), tf.random.normal([3])
    np.testing.assert_array_equal(after([t], d)[0], t)
