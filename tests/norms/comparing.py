"""What the tests of per-example norms share: data, and comparisons with the slow reference and the true gradient."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch.norms import KERAS, brute_force_gradient_norms, measure, per_example_gradient_norms

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# float32 sums of a few hundred terms in different orders.
RTOL = 1e-5


def batch(model: keras.Model, size: int):
    """Random inputs of a model and one of three labels for each."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(size, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(0, 3, size)


def randomize(model: keras.Model) -> None:
    """Moves scales and biases off their initial ones and zeros."""
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        v.assign(v + 0.3 * rng.normal(size=v.shape))


def assert_norms_close(found, expected, rtol=RTOL):
    assert found.keys() == expected.keys()
    for path in expected:
        # Absolute part: examples whose gradient all but vanishes among the batch's.
        atol = rtol * float(tf.reduce_max(expected[path])) + 1e-7
        np.testing.assert_allclose(found[path], expected[path], rtol=rtol, atol=atol, err_msg=path)


def assert_agrees_with_the_reference(model, x, y, rtol=RTOL, loss=CROSS_ENTROPY, **arguments):
    """Every trainable tensor is measured, in float32, and as the slow reference does. Returns the norms."""
    found = per_example_gradient_norms(model, x, y, loss, **arguments)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert all(norms.dtype == tf.float32 for norms in found.values())
    assert_norms_close(found, brute_force_gradient_norms(model, x, y, loss, **arguments), rtol)
    return found


def measured_in_training(model, x, y, batch_size, training=True):
    """The output and the measurement of one pass."""
    return measure(
        model,
        lambda: model(x, training=training),
        lambda y_pred: CROSS_ENTROPY(y, y_pred),
        model.trainable_variables,
        batch_size,
        KERAS,
    )


def assert_gradient_and_output_are_the_models_own(model, x, y, training, traced):
    """The contributions add up to the gradient; output and state are those of a pass without rules."""
    before = [v.numpy() for v in model.variables]
    with tf.GradientTape() as tape:
        plain = model(x, training=training)
        loss = CROSS_ENTROPY(y, plain)
    expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
    after_plain = [v.numpy() for v in model.variables]
    for v, value in zip(model.variables, before, strict=True):
        v.assign(value)

    def outputs_and_gradients(x, y):
        output, found = measured_in_training(model, x, y, x.shape[0], training)
        return output, [tf.convert_to_tensor(g) for g in found.gradients]

    run = tf.function(outputs_and_gradients, autograph=False) if traced else outputs_and_gradients
    output, gradients = run(tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(output, plain, rtol=1e-5, atol=1e-5)
    for v, w in zip(model.variables, after_plain, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-6, atol=1e-7, err_msg=v.path)
    for v, found, g in zip(model.trainable_variables, gradients, expected, strict=True):
        assert found.dtype == v.dtype
        scale = float(tf.reduce_max(tf.abs(tf.convert_to_tensor(g))))
        # A bias before batch norm has gradient zero, of which both give rounding noise.
        np.testing.assert_allclose(found, g, rtol=RTOL, atol=2e-5 * scale + 1e-6, err_msg=v.path)


def sums_of_a_traced_step(model, signature):
    """A compiled function of x and y that gives the norm sums of all variables, traced with this signature of x."""

    @tf.function(input_signature=[signature, tf.TensorSpec([None], tf.int64)])
    def sums(x, y):
        return measured_in_training(model, x, y, tf.shape(x)[0])[1].gradient_norms().unpack()

    return sums


def assert_sums_agree_whatever_the_sizes(model, signature, x, y, smaller_x, smaller_y):
    """The sums of a step traced without the sizes are the reference's means; other sizes trace nothing again."""
    sums = sums_of_a_traced_step(model, signature)
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    for v, s in zip(model.trainable_variables, sums(x, y), strict=True):
        np.testing.assert_allclose(s, tf.reduce_mean(expected[v.path]), rtol=RTOL, atol=1e-6, err_msg=v.path)
    sums(smaller_x, smaller_y)
    assert sums.experimental_get_tracing_count() == 1
