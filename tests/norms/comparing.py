"""What the tests of per-example norms share: data, and comparisons with the slow reference and the true gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tf_largebatch.norms import KERAS, brute_force_gradient_norms, measure, per_example_gradient_norms
from tf_largebatch.norms.state import state_of

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# float32 sums of a few hundred terms in different orders.
RTOL = 1e-5
ON_JAX = keras.backend.backend() == "jax"
tensorflow_only = pytest.mark.skipif(ON_JAX, reason="TensorFlow only: JAX has no such thing")


def batch(model: keras.Model, size: int):
    """Random inputs of a model and one of three labels for each."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(size, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(0, 3, size)


def randomize(model: keras.Model) -> None:
    """Moves scales and biases off their initial ones and zeros."""
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        v.assign(v + 0.3 * rng.normal(size=v.shape).astype("float32"))


def dtype_of(t: Any) -> str:
    """The name of a tensor's dtype."""
    return keras.backend.standardize_dtype(t.dtype)


def norm_of(gradient: Any) -> float:
    """The norm of all entries."""
    return float(np.sqrt(np.sum(np.square(ops.convert_to_numpy(gradient), dtype="float64"))))


def assert_norms_close(found, expected, rtol=RTOL):
    assert found.keys() == expected.keys()
    for path in expected:
        # Absolute part: examples whose gradient all but vanishes among the batch's.
        right = ops.convert_to_numpy(expected[path])
        atol = rtol * float(np.max(right)) + 1e-7
        np.testing.assert_allclose(ops.convert_to_numpy(found[path]), right, rtol=rtol, atol=atol, err_msg=path)


def norms_of(model, x, y, loss=CROSS_ENTROPY, **arguments):
    """`per_example_gradient_norms`; on JAX compiled, since each operation by itself takes long to compile."""

    def norms(x, y):
        return per_example_gradient_norms(model, x, y, loss, **arguments)

    return run_traced(norms, x, y) if ON_JAX else norms(x, y)


def norms_one_by_one(model, x, y, loss=CROSS_ENTROPY):
    """Each example's norms in a batch of its own, [B] for each variable: where examples are independent."""
    norms = {v.path: [] for v in model.trainable_variables}
    for i in range(len(y)):
        one = keras.tree.map_structure(lambda t, i=i: t[i : i + 1], x)
        _, gradients = plain_pass(model, one, lambda y_pred, i=i: loss(y[i : i + 1], y_pred))
        for v, g in zip(model.trainable_variables, gradients, strict=True):
            norms[v.path].append(norm_of(g))
    return norms


def assert_agrees_with_the_reference(model, x, y, rtol=RTOL, loss=CROSS_ENTROPY, **arguments):
    """Every trainable tensor is measured, in float32, and as the slow reference does. Returns the norms."""
    found = norms_of(model, x, y, loss, **arguments)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert all(dtype_of(norms) == "float32" for norms in found.values())
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
    if ON_JAX:
        import jax

        state = state_of(model)
        leaves: dict[int, Any] = {}

        class Leaves(keras.StatelessScope):
            """As on TensorFlow, what is assigned to a trainable variable is where its gradient is taken."""

            def add_update(self, update):
                variable, value = update
                leaf = leaves.get(id(variable))
                if leaf is not None:
                    value = jax.lax.stop_gradient(value) + (leaf - jax.lax.stop_gradient(leaf))
                super().add_update((variable, value))

        def target(values: Sequence[Any]) -> Any:
            leaves.update((id(v), value) for v, value in zip(variables, values, strict=True))
            with Leaves(state_mapping=list(zip(variables, values, strict=True))) as scope:
                scalar, outputs = function()
            return scalar, (outputs, [scope.get_current_value(v) for v in state])

        gradients, (outputs, new) = jax.jit(jax.grad(target, has_aux=True))([v.value for v in variables])
        for v, value in zip(state, new, strict=True):
            v.assign(v.value if value is None else value)
        return outputs, gradients
    import tensorflow as tf

    with tf.GradientTape() as tape:
        scalar, outputs = function()
    gradients = tape.gradient(scalar, [v.value for v in variables], unconnected_gradients="zero")
    return outputs, [tf.convert_to_tensor(g) for g in gradients]


def plain_pass(model: keras.Model, x: Any, loss: Callable[[Any], Any], training: bool = True) -> tuple[Any, Any]:
    """The model's outputs for x and the gradients of their loss; see `plain_gradients`."""

    def loss_and_output():
        output = model(x, training=training)
        return loss(output), output

    return plain_gradients(model, loss_and_output)


def run_traced(function: Callable[..., Any], *tensors: Any, by_xla: bool = False) -> Any:
    """Runs a function of tensors in a compiled program; variables that it assigns have their new values after it.

    JAX compiles by XLA anyway.
    """
    if ON_JAX:
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

    return tf.function(function, autograph=False, jit_compile=by_xla)(*(tf.constant(t) for t in tensors))


def assert_gradient_and_output_are_the_models_own(model, x, y, training, traced):
    """The contributions add up to the gradient; output and state are those of a pass without rules."""
    before = [v.numpy() for v in model.variables]
    plain, expected = plain_pass(model, x, lambda y_pred: CROSS_ENTROPY(y, y_pred), training)
    after_plain = [v.numpy() for v in model.variables]
    for v, value in zip(model.variables, before, strict=True):
        v.assign(value)

    def outputs_and_gradients(x, y):
        output, found = measured_in_training(model, x, y, x.shape[0], training)
        return output, [dense(g) for g in found.gradients]

    if traced or ON_JAX:  # where each operation by itself takes long to compile
        output, gradients = run_traced(outputs_and_gradients, x, y)
    else:
        output, gradients = outputs_and_gradients(ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    np.testing.assert_allclose(ops.convert_to_numpy(output), ops.convert_to_numpy(plain), rtol=1e-5, atol=1e-5)
    for v, w in zip(model.variables, after_plain, strict=True):
        np.testing.assert_allclose(v.numpy(), w, rtol=1e-6, atol=1e-7, err_msg=v.path)
    for v, found, g in zip(model.trainable_variables, gradients, expected, strict=True):
        assert dtype_of(found) == v.dtype
        found, g = ops.convert_to_numpy(found), ops.convert_to_numpy(g)
        # A bias before batch norm has gradient zero, of which both give rounding noise.
        np.testing.assert_allclose(found, g, rtol=RTOL, atol=2e-5 * float(np.max(np.abs(g))) + 1e-6, err_msg=v.path)


def dense(gradient: Any) -> Any:
    """A gradient as a tensor, whether it is sparse or not."""
    if ON_JAX:
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def traced_without_sizes(function: Callable[..., Any], shape: Sequence[int | None]) -> Callable[..., Any]:
    """A compiled function of inputs x of this shape, in which sizes may be None, and labels y.

    On TensorFlow it is traced once; on JAX, which knows all sizes, once for each.
    """
    if ON_JAX:
        return lambda *tensors: run_traced(function, *tensors)
    import tensorflow as tf

    return tf.function(
        function, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([None], tf.int64)], autograph=False
    )


def sums_of_a_traced_step(model, shape):
    """A compiled function of x and y that gives the norm sums of all variables."""

    def sums(x, y):
        size = ops.shape(x)[0]
        return measured_in_training(model, x, y, size)[1].gradient_norms().unpack()

    return traced_without_sizes(sums, shape)


def assert_sums_agree_whatever_the_sizes(model, shape, x, y, smaller_x, smaller_y):
    """The sums of a step traced without the sizes are the reference's means; other sizes trace nothing again."""
    sums = sums_of_a_traced_step(model, shape)
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    for v, s in zip(model.trainable_variables, sums(x, y), strict=True):
        mean = np.mean(ops.convert_to_numpy(expected[v.path]))
        np.testing.assert_allclose(ops.convert_to_numpy(s), mean, rtol=RTOL, atol=1e-6, err_msg=v.path)
    if not ON_JAX:
        sums(smaller_x, smaller_y)
        assert sums.experimental_get_tracing_count() == 1
