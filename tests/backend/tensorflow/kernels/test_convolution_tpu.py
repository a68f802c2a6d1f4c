"""The TPU's forms compute what the definition says. Here they are compiled by XLA for the CPU, which runs them too.

TensorFlow only: it tests kernels in TensorFlow. tests/backend/jax tests those in JAX.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from paper_settings import paper
from selection import long_unless

from tf_largebatch import CLARS, LargeBatchModel
from tf_largebatch.backend.tensorflow.kernels import convolution_direct, convolution_tpu
from tf_largebatch.norms import brute_force_gradient_norms
from tf_largebatch.norms.device import compiling_for, device
from tf_largebatch.norms.window import Window

# batch, input rows and columns, input and output channels, window; one line for every way through the module
CASES = {
    "pointwise": (3, (5, 4), 6, 5, Window((1, 1), (1, 1), "valid", (1, 1))),
    "pointwise_strided": (3, (5, 4), 6, 5, Window((1, 1), (2, 2), "valid", (1, 1))),
    "pointwise_strided_same": (2, (6, 5), 3, 4, Window((1, 1), (2, 2), "same", (1, 1))),
    "pointwise_many_outputs": (2, (9, 9), 512, 1024, Window((1, 1), (1, 1), "valid", (1, 1))),
    "pointwise_many_inputs": (2, (9, 9), 1024, 512, Window((1, 1), (1, 1), "valid", (1, 1))),
    "pairs": (3, (5, 6), 4, 5, Window((3, 3), (1, 1), "same", (1, 1))),
    "three_columns_valid": (3, (5, 6), 4, 5, Window((3, 3), (1, 1), "valid", (1, 1))),
    "pairs_rows_strided": (2, (7, 6), 4, 5, Window((3, 3), (2, 1), "same", (1, 1))),
    "pairs_batch_of_one": (1, (5, 6), 4, 5, Window((3, 3), (1, 1), "same", (1, 1))),
    "side_by_side": (3, (9, 9), 3, 4, Window((7, 7), (2, 2), "valid", (1, 1))),
    "side_by_side_same": (3, (8, 7), 3, 4, Window((5, 3), (2, 2), "same", (1, 1))),
    "columns": (2, (12, 11), 65, 70, Window((3, 3), (1, 1), "same", (1, 1))),
    "columns_strided": (2, (12, 11), 65, 70, Window((3, 3), (2, 2), "valid", (1, 1))),
    "columns_dilated": (2, (12, 11), 65, 70, Window((3, 2), (1, 1), "same", (2, 3))),
    "columns_batch_of_one": (1, (12, 11), 65, 70, Window((3, 3), (1, 1), "same", (1, 1))),
    "gram": (2, (3, 4), 200, 200, Window((3, 3), (1, 1), "same", (1, 1))),
    "gram_strided": (2, (6, 4), 200, 200, Window((3, 3), (2, 2), "valid", (1, 1))),
    "gram_pointwise": (2, (2, 2), 200, 200, Window((1, 1), (1, 1), "same", (1, 1))),
    "gram_pointwise_strided": (2, (4, 3), 200, 200, Window((1, 1), (2, 2), "valid", (1, 1))),
    "gram_dilated": (2, (3, 3), 150, 150, Window((3, 3), (1, 1), "same", (2, 2))),
}


def _inputs(case, dtype=tf.float32):
    batch, sizes, inputs, outputs, window = CASES[case]
    a = tf.random.normal([batch, *sizes, inputs])
    kernel = tf.zeros([*window.kernel_size, inputs, outputs])
    d = tf.random.normal(
        tf.nn.convolution(a, kernel, window.strides, window.padding.upper(), dilations=window.dilation_rate).shape
    )
    return tf.cast(a, dtype), tf.cast(d, dtype), window


def _compiled(f, a, d, window):
    return tf.function(lambda a, d: f(a, d, window, 1), jit_compile=True, autograph=False)(a, d)


# Each way of computing them once; XLA compiles two programs a case.
QUICK = ("pointwise", "pointwise_strided_same", "pairs_rows_strided", "three_columns_valid", "side_by_side_same")
QUICK += ("columns_strided", "columns_dilated", "gram_strided", "gram_pointwise")


@pytest.mark.parametrize("case", long_unless(CASES, QUICK))
def test_as_by_definition(case):
    a, d, window = _inputs(case)
    squares, gradient = convolution_direct.norms_and_gradient(a, d, window, 1)
    # Float32 sums of up to a thousand terms in another order; the Gram form's terms cancel besides.
    tolerance = 1e-4 if case.startswith("gram") else 2e-5
    np.testing.assert_allclose(_compiled(convolution_tpu.squared_norms, a, d, window), squares, rtol=tolerance)
    found_squares, found_gradient = _compiled(convolution_tpu.norms_and_gradient, a, d, window)
    np.testing.assert_allclose(found_squares, squares, rtol=tolerance)
    np.testing.assert_allclose(found_gradient, gradient, rtol=tolerance, atol=tolerance * np.abs(gradient).max())


@pytest.mark.parametrize("case", ["pointwise", "pairs", "side_by_side", "columns", "gram"])
def test_bfloat16_inputs_are_summed_in_float32(case):
    a, d, window = _inputs(case, tf.bfloat16)
    squares = convolution_direct.squared_norms(tf.cast(a, tf.float32), tf.cast(d, tf.float32), window, 1)
    found = _compiled(convolution_tpu.squared_norms, a, d, window)
    assert found.dtype == tf.float32
    # The inputs are exact in bfloat16 on both sides, products and sums are not rounded to it.
    np.testing.assert_allclose(found, squares, rtol=1e-3)


def test_a_zero_gradient_has_zero_norms():
    for case in ("pointwise", "pairs", "columns", "gram"):
        a, d, window = _inputs(case)
        np.testing.assert_array_equal(_compiled(convolution_tpu.squared_norms, a, 0 * d, window), 0)


def test_the_general_form_is_left_the_rest():
    volume, window = tf.zeros([2, 3, 3, 3, 4]), Window((1, 1, 1), (1, 1, 1), "valid", (1, 1, 1))
    assert convolution_tpu.squared_norms(volume, volume, window, 1) is None
    a, d, window = _inputs("pairs")
    assert convolution_tpu.norms_and_gradient(a, d, window, 2) is None

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 6, 4]), tf.TensorSpec([None, 5, 6, 5])], autograph=False)
    def batch_unknown_when_traced(a, d):
        assert convolution_tpu.squared_norms(a, d, window, 1) is None
        return tf.constant(0)

    batch_unknown_when_traced(a, d)


@pytest.mark.parametrize(
    ("case", "free"),
    [("pointwise", True), ("pointwise_strided", True), ("gram_pointwise", False), ("columns", False), ("pairs", False)],
)
def test_all_norms_come_free_where_one_product_gives_them(case, free):
    a, d, window = _inputs(case)
    assert convolution_tpu.all_norms_are_free(a, d, window, 1) == free
    assert not convolution_tpu.all_norms_are_free(a, d, window, 2)


@pytest.mark.parametrize("examples", [None, 2])
def test_a_step_traced_for_a_tpu_measures_as_the_reference(examples):
    layers = [keras.layers.Conv2D(5, 1, activation="relu"), keras.layers.Conv2D(4, 3, padding="same")]
    net = keras.Sequential([keras.Input((6, 6, 3)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)])
    x, y = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32"), np.arange(4) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = brute_force_gradient_norms(net, x, y, loss)
    before = [v.numpy() for v in net.trainable_variables]
    with tf.GradientTape() as tape:
        value = loss(y, net(x))
    gradients = tape.gradient(value, [v.value for v in net.trainable_variables])
    with compiling_for("tpu"):
        model = LargeBatchModel(net, norm_examples=examples)
        optimizer = paper(CLARS, 1.0, eta=1.0, momentum=0.0, gradient_norms="per_example")
        model.compile(optimizer, loss, jit_compile=True)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    # Float32 sums in another order.
    for path, norms in expected.items():
        np.testing.assert_allclose(optimizer.gradient_norms()[path], np.mean(norms[:examples]), rtol=1e-4, err_msg=path)
    for old, v, gradient in zip(before, net.trainable_variables, gradients, strict=True):
        step = old - v.numpy()
        cosine = np.sum(step * gradient) / (np.linalg.norm(step) * np.linalg.norm(gradient))
        assert cosine > 1 - 1e-5, v.path


def test_device_is_what_is_compiled_for():
    assert device() == "cpu"
    with compiling_for("tpu"):
        assert device() == "tpu"
        with compiling_for("gpu"):
            assert device() == "gpu"
        assert device() == "tpu"
    assert device() == "cpu"
    with pytest.raises(ValueError, match="kind='npu'"), compiling_for("npu"):
        pass
