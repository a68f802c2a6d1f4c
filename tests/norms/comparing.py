"""What the tests of per-example norms share: data, and comparisons with the slow reference and the true gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

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
        right = ops.convert_to_numpy(expected[path])
        atol = rtol * float(np.max(right)) + 1e-7
        np.testing.assert_allclose(ops.convert_to_numpy(found[path]), right, rtol=rtol, atol=atol, err_msg=path)


def assert_agrees_with_the_reference(model, x, y, rtol=RTOL, loss=CROSS_ENTROPY, **arguments):
    """Every trainable tensor is measured, in float32, and as the slow reference does. Returns the norms."""
    found = per_example_gradient_norms(model, x, y, loss, **arguments)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert all(keras.backend.standardize_dtype(norms.dtype) == "float32" for norms in found.values())
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


def plain_gradients(model: keras.Model, function: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """The model's outputs and the gradients of its trainable variables, without any of our code.

    Args:
        model: the model.
        function: runs it and returns a scalar and the outputs.
    """
    variables = model.trainable_variables
    if keras.backend.backend() == "jax":
        import jax

        def target(values: Sequence[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
                scalar, outputs = function()
            return scalar, (outputs, [scope.get_current_value(v) for v in model.non_trainable_variables])

        gradients, (outputs, state) = jax.grad(target, has_aux=True)([v.value for v in variables])
        for v, value in zip(model.non_trainable_variables, state, strict=True):
            v.assign(v.value if value is None else value)
        return outputs, gradients
    import tensorflow as tf

    with tf.GradientTape() as tape:
        scalar, outputs = function()
    gradients = tape.gradient(scalar, [v.value for v in variables])
    return outputs, [tf.convert_to_tensor(g) for g in gradients]


def run_traced(function: Callable[..., Any], *tensors: Any) -> Any:
    """Runs a function of tensors in a compiled program; variables that it assigns have their new values after it."""
    if keras.backend.backend() == "jax":
        import jax

        from tf_largebatch.backend.jax.scopes import assign, inner_scope

        assigned: list[Any] = []

        def stateless(*tensors: Any) -> Any:
            with inner_scope() as scope:
                results = function(*tensors)
            assigned[:] = scope.assigned
            return results, scope.changes()

        results, changes = jax.jit(stateless)(*tensors)
        assign(assigned, changes)
        return results
    import tensorflow as tf

    return tf.function(function, autograph=False)(*(tf.constant(t) for t in tensors))


def assert_gradient_and_output_are_the_models_own(model, x, y, training, traced):
    """The contributions add up to the gradient; output and state are those of a pass without rules."""
    before = [v.numpy() for v in model.variables]

    def loss_and_output():
        output = model(x, training=training)
        return CROSS_ENTROPY(y, output), output

    plain, expected = plain_gradients(model, loss_and_output)
    after_plain = [v.numpy() for v in model.variables]
    for v, value in zip(model.variables, before, strict=True):
        v.assign(value)

    def outputs_and_gradients(x, y):
        output, found = measured_in_training(model, x, y, x.shape[0], training)
        return output, [ops.convert_to_tensor(g) for g in found.gradients]

    if traced:
        output, gradients = run_traced(outputs_and_gradients, x, y)
    else:
        output, gradients = outputs_and_gradients(ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    np.testing.assert_allclose(ops.convert_to_numpy(output), ops.convert_to_numpy(plain), rtol=1e-5, atol=1e-5)
    for v, w in zip(model.variables, after_plain, strict=True):
        np.testing.assert_allclose(v.numpy(), w, rtol=1e-6, atol=1e-7, err_msg=v.path)
    for v, found, g in zip(model.trainable_variables, gradients, expected, strict=True):
        assert keras.backend.standardize_dtype(found.dtype) == v.dtype
        found, g = ops.convert_to_numpy(found), ops.convert_to_numpy(g)
        # A bias before batch norm has gradient zero, of which both give rounding noise.
        np.testing.assert_allclose(found, g, rtol=RTOL, atol=2e-5 * float(np.max(np.abs(g))) + 1e-6, err_msg=v.path)


def sums_of_a_traced_step(model, shape):
    """A compiled function of x and y that gives the norm sums of all variables.

    On TensorFlow it is traced once, with this shape of x, in which sizes may be None; on JAX once for each size.
    """

    def sums(x, y):
        size = ops.shape(x)[0]
        return measured_in_training(model, x, y, size)[1].gradient_norms().unpack()

    if keras.backend.backend() == "jax":
        return lambda x, y: run_traced(sums, x, y)
    import tensorflow as tf

    return tf.function(sums, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([None], tf.int64)])


def assert_sums_agree_whatever_the_sizes(model, shape, x, y, smaller_x, smaller_y):
    """The sums of a step traced without the sizes are the reference's means; other sizes trace nothing again."""
    sums = sums_of_a_traced_step(model, shape)
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    for v, s in zip(model.trainable_variables, sums(x, y), strict=True):
        mean = np.mean(ops.convert_to_numpy(expected[v.path]))
        np.testing.assert_allclose(ops.convert_to_numpy(s), mean, rtol=RTOL, atol=1e-6, err_msg=v.path)
    if keras.backend.backend() == "tensorflow":
        sums(smaller_x, smaller_y)
        assert sums.experimental_get_tracing_count() == 1
