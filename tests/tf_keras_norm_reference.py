"""The slow, obviously right reference for the norms of tf_keras models, and the comparisons made with it.

The same algorithm as `tf_largebatch.norms.brute_force_gradient_norms`: it knows no layer and uses no rule.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_largebatch.norms import measure
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.tf_keras.norms import TF_KERAS

# float32 sums of a few hundred terms in different orders.
RTOL = 1e-5


def cross_entropy(labels, logits):
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def randomize(model, seed=2):
    """Moves scales, biases and everything that starts at zero off its initial value."""
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        v.assign(v + 0.1 * rng.normal(size=v.shape))


def reference(model, x, y, loss=cross_entropy, training=True):
    """`{index of the variable: [norm of example i's contribution]}`; the model's state is restored."""
    state = [(v, v.numpy()) for v in model.non_trainable_variables]
    layers = [layer for layer in model._flatten_layers() if own_trainable_variables(layer)]
    calls = []

    def restore():
        for v, before in state:
            v.assign(before)

    def recording(layer):
        def call(*args, **kwargs):
            outputs = tf.nest.map_structure(tf.identity, type(layer).call(layer, *args, **kwargs))
            calls.append((layer, args, kwargs, outputs))
            return outputs

        return call

    with tf.GradientTape() as tape:
        try:
            for layer in layers:
                object.__setattr__(layer, "call", recording(layer))
            value = loss(y, model(x, training=training))
        finally:
            for layer in layers:
                vars(layer).pop("call", None)
    d_outputs = tape.gradient(value, [outputs for *_, outputs in calls])
    norms = {}
    for i in range(len(x)):
        contributions = {}
        for (layer, args, kwargs, _), d in zip(calls, d_outputs, strict=True):
            if d is None:
                continue
            own = own_trainable_variables(layer)
            restore()  # batch renormalization depends on it
            with tf.GradientTape() as layer_tape:
                outputs = layer(*args, **kwargs)
            row = tf.reshape(tf.one_hot(i, len(x), dtype=d.dtype), [-1] + [1] * (d.shape.rank - 1))
            for v, share in zip(own, layer_tape.gradient(outputs, own, output_gradients=d * row), strict=True):
                if share is not None:
                    share = tf.cast(tf.convert_to_tensor(share), tf.float32)
                    contributions[id(v)] = contributions.get(id(v), 0.0) + share
        for index, v in enumerate(model.trainable_variables):
            if id(v) in contributions:
                norms.setdefault(index, []).append(float(tf.norm(contributions[id(v)])))
    restore()
    return {index: np.array(values) for index, values in norms.items()}


def measured(model, x, y, loss=cross_entropy, training=True, examples=None, registry=TF_KERAS):
    return measure(
        model,
        lambda: model(x, training=training),
        lambda logits: loss(y, logits),
        model.trainable_variables,
        len(x),
        registry,
        examples,
    )


def assert_measured_right(model, x, y, loss=cross_entropy, training=True, rtol=RTOL, registry=TF_KERAS, traced=False):
    """Norms, eager or traced, against the reference; output, gradient and new state against the plain step.

    The state is restored.
    """
    before = [v.numpy() for v in model.non_trainable_variables]

    def restore():
        after = [v.numpy() for v in model.non_trainable_variables]
        for v, value in zip(model.non_trainable_variables, before, strict=True):
            v.assign(value)
        return after

    expected = reference(model, x, y, loss, training)
    with tf.GradientTape() as tape:
        plain = model(x, training=training)
        value = loss(y, plain)
    gradients = tape.gradient(value, model.trainable_variables)
    state = restore()

    def measure_it():
        output, found = measured(model, x, y, loss, training, registry=registry)
        return output, found.squared_norms, found.gradients

    output, squared_norms, found_gradients = tf.function(measure_it, autograph=False)() if traced else measure_it()
    new_state = restore()
    np.testing.assert_allclose(output, plain, rtol=rtol, atol=rtol * float(tf.reduce_max(tf.abs(plain))))
    for v, one, other in zip(model.non_trainable_variables, new_state, state, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=v.name)
    assert [i for i, s in enumerate(squared_norms) if s is not None] == sorted(expected)
    # A bias before batch norm has gradient zero, of which both give rounding noise of the size of its terms.
    noise = 1e-6 * max(float(tf.norm(g)) for g in gradients if g is not None)
    for index, v in enumerate(model.trainable_variables):
        if index not in expected:
            continue
        norms = np.sqrt(squared_norms[index])
        atol = rtol * expected[index].max() + noise
        np.testing.assert_allclose(norms, expected[index], rtol=rtol, atol=atol, err_msg=v.name)
        gradient, plain_gradient = found_gradients[index], tf.convert_to_tensor(gradients[index])
        assert gradient.dtype == v.dtype
        atol = 2 * rtol * float(tf.reduce_max(tf.abs(plain_gradient))) + noise
        gradient = tf.convert_to_tensor(gradient)
        np.testing.assert_allclose(gradient, plain_gradient, rtol=rtol, atol=atol, err_msg=v.name)


def assert_norms_in_half_precision(model, x, y, rtol):
    """The norms and gradients are float32 and close to the reference.

    A few roundings of 2^-11 and 2^-8 are amplified where contributions of different positions cancel.
    """
    expected = reference(model, x, y)
    _, found = measured(model, x, y)
    for index, v in enumerate(model.trainable_variables):
        assert found.squared_norms[index].dtype == tf.float32
        assert found.gradients[index].dtype == tf.float32
        if "key/bias" not in v.name:  # its contributions cancel, up to rounding: softmax ignores what all keys have
            atol = rtol * expected[index].max()
            np.testing.assert_allclose(np.sqrt(found.squared_norms[index]), expected[index], rtol, atol, err_msg=v.name)
