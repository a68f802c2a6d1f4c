"""JAX only: the training step as a pure function, and what Keras's trainer on JAX makes of it."""

from __future__ import annotations

import jax
import keras
import numpy as np
import pytest
from keras import layers
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.callbacks import GradientNoiseScale, LayerwiseCallback

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 6)).astype("float32"), RNG.integers(0, 3, 24)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Penalized(layers.Layer):
    """`add_loss` beside batch norm and dropout, whose state a step carries."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = layers.BatchNormalization(), layers.Dropout(0.3)

    def call(self, x, training=None):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return self.dropout(self.norm(x, training=training), training=training)


def wrapped(optimizer=None, **arguments):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), layers.Dense(5), Penalized(), layers.Dense(3)])
    model = lb.LargeBatchModel(net, **arguments)
    model.compile(optimizer or paper(lb.CLARS, 0.1), CROSS_ENTROPY, metrics=["accuracy"])
    return model


def state_of(model):
    model._symbolic_build(data_batch=(X[:8], Y[:8]))
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([v.value for v in variables] for variables in groups)


def weights(model):
    return [v.numpy() for v in model.weights]


@pytest.mark.parametrize("arguments", [long({}), {"micro_batch_size": 3}])
def test_the_step_is_a_pure_function_that_jit_and_scan_take(arguments):
    """keras 19402: metrics, `add_loss`, batch norm's averages and random numbers inside a stateless step."""
    model = wrapped(**arguments)
    model.check_micro_batches(X, Y)
    before = weights(model)
    state = state_of(model)

    def body(state, batch):
        logs, state = model.train_step(state, batch)
        return state, logs["loss"]

    (trainable, non_trainable, _, _), losses = jax.lax.scan(body, state, (X.reshape(3, 8, 6), Y.reshape(3, 8)))
    one = jax.jit(model.train_step)
    for i in range(3):
        logs, state = one(state, (X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]))
    for found, expected in zip([*trainable, *non_trainable], [*state[0], *state[1]], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses[-1], logs["loss"], rtol=1e-5)
    for a, b in zip(before, weights(model), strict=True):  # no variable was touched, none keeps a tracer
        np.testing.assert_array_equal(a, b)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    for v, expected in zip(model.trainable_variables, state[0], strict=True):
        np.testing.assert_allclose(v.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_metrics_and_added_losses_are_those_of_plain_keras():
    """keras 19402. The loss in the logs holds what layers add, and the update follows it."""
    model = wrapped(keras.optimizers.SGD(0.1))
    plain = wrapped(keras.optimizers.SGD(0.1)).model
    plain.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY, metrics=["accuracy"])
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    expected, found = plain.fit(X, Y, **fit).history, model.fit(X, Y, **fit).history
    assert set(found) == set(expected) == {"loss", "accuracy"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(weights(model.model), weights(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_steps_per_execution_and_no_compilation_give_the_same():
    models = []
    for how in ({}, {"steps_per_execution": 2}, {"jit_compile": False}):
        model = wrapped()
        model.compile(paper(lb.CLARS, 0.1), CROSS_ENTROPY, **how)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        models.append(model)
    for other in models[1:]:
        for a, b in zip(weights(models[0]), weights(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_data_of_unknown_batch_size():
    """keras-hub 1630: a dataset without a static batch size, and a generator."""
    tf = pytest.importorskip("tensorflow")
    spec = tf.TensorSpec((None, 6), tf.float32), tf.TensorSpec((None,), tf.int64)
    parts = lambda: ((X[i : i + 9], Y[i : i + 9]) for i in (0, 9, 18))  # noqa: E731
    data = tf.data.Dataset.from_generator(parts, output_signature=spec)
    models = [wrapped(), wrapped(), wrapped(micro_batch_size=4)]
    for model, some in zip(models, (data, parts(), data), strict=True):
        model.fit(some, verbose=0)
        assert int(model.optimizer.iterations) == 3
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_layers_frozen_after_compile_and_after_a_step():
    """keras 22104."""
    for optimizer in (paper(lb.CLARS, 0.1), keras.optimizers.LossScaleOptimizer(paper(lb.CLARS, 0.1))):
        model = wrapped(optimizer)
        model.fit(X, Y, batch_size=8, verbose=0)
        head = model.model.layers[-1]
        head.trainable = False
        frozen, first = head.kernel.numpy(), model.model.layers[0].kernel.numpy()
        model.fit(X, Y, batch_size=8, verbose=0)
        np.testing.assert_array_equal(head.kernel.numpy(), frozen)
        assert np.any(model.model.layers[0].kernel.numpy() != first)


def test_callbacks_read_the_present_step_in_the_middle_of_an_epoch():
    seen = []

    class Watching(LayerwiseCallback):
        def record(self, update, values):
            seen.append((update, {path: value.weight_norm for path, value in values.items()}))

    model = wrapped()
    noise = GradientNoiseScale()
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[Watching(every=1), noise])
    assert [update for update, _ in seen] == [1, 2, 3]
    for v in model.trainable_variables:
        np.testing.assert_allclose(seen[-1][1][v.path], np.linalg.norm(v.numpy()), rtol=1e-5)
    assert np.isfinite(noise.of_network().variance)
    assert model.non_trainable_variables == model.model.non_trainable_variables  # nothing stays behind
    model.fit(X, Y, batch_size=8, verbose=0)


def test_a_variable_that_the_loss_does_not_depend_on_is_left_alone():
    """As on TensorFlow: no weight decay, and no rate."""
    inputs = keras.Input((6,))
    unused = layers.Dense(2, name="unused")(inputs)
    net = keras.Model(inputs, {"p": layers.Dense(3, name="used")(inputs), "q": unused})
    for optimizer in (paper(lb.CLARS, 0.1, weight_decay_rate=0.1), keras.optimizers.SGD(0.1, weight_decay=0.1)):
        model = lb.LargeBatchModel(net)
        model.compile(optimizer, {"p": CROSS_ENTROPY})
        before = net.get_layer("unused").kernel.numpy()
        model.fit(X, {"p": Y}, verbose=0)
        np.testing.assert_array_equal(net.get_layer("unused").kernel.numpy(), before)
