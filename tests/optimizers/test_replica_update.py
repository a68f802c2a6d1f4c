"""Two replicas under MirroredStrategy do what one device does with all examples.

TensorFlow only: JAX has no replicas.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from layerwise_cases import make, regression
from paper_settings import paper
from selection import long

from tf_largebatch.optimizers import CLARS, LARS

X, Y = regression(examples=8)
KERNEL, BIAS = np.random.default_rng(4).normal(size=(4, 3)).astype("float32"), np.ones(3, "float32")
PARTS = {1: [slice(0, 8)], 2: [slice(0, 4), slice(4, 8)]}


def example_norms(x, y, kernel, bias):
    """Sums over the given examples of the norms of their shares of the mean gradient over all 8."""
    error = 2 * (x @ kernel + bias - y) / 3 / 8
    size = tf.norm(error, axis=1)
    return {"kernel": tf.reduce_sum(tf.norm(x, axis=1) * size), "bias": tf.reduce_sum(size)}


def train(strategy, make_optimizer, measured=False, loss_scale=None, graph=True, steps=4, dtypes=("float32",) * 2):
    computed = np.result_type(*dtypes).name
    with strategy.scope():
        trained = [
            keras.Variable(KERNEL, name="kernel", dtype=dtypes[0]),
            keras.Variable(BIAS, name="bias", dtype=dtypes[1]),
        ]
        inner = outer = make_optimizer()
        if loss_scale:
            outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=loss_scale)
        outer.build(trained)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            kernel, bias = (tf.cast(v.value, computed) for v in trained)
            loss = tf.reduce_mean((x @ kernel + bias - y) ** 2)
            loss = outer.scale_loss(loss / strategy.num_replicas_in_sync)
        gradients = tape.gradient(loss, [v.value for v in trained])
        if measured:
            some = example_norms(x, y, kernel, bias)
            # As the model wrapper does: norms carry the optimizer's own loss scale, not the dynamic one.
            some = {path: s * (inner.loss_scale_factor or 1.0) for path, s in some.items()}
            with inner.measured_gradient_norms(some):
                outer.apply(gradients, trained)
        else:
            outer.apply(gradients, trained)

    def step(x, y):
        strategy.run(replica_step, args=(x, y))

    if graph:
        step = tf.function(step, autograph=False)
    parts = PARTS[strategy.num_replicas_in_sync]

    def distributed(array):
        array = array.astype(computed)
        if len(parts) == 1:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
        )

    for _ in range(steps):
        step(distributed(X), distributed(Y))
    copies = [[c.numpy() for c in strategy.experimental_local_results(v.value)] for v in trained]
    return copies, inner


def assert_close(found, expected):
    (copies, optimizer), (expected_copies, expected_optimizer) = found, expected
    for replicas, (other,) in zip(copies, expected_copies, strict=True):
        for one in replicas:
            # Sums over 8 examples against sums of two sums over 4, in float32.
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        # Replicas must not drift apart at all.
        np.testing.assert_array_equal(replicas[0], replicas[-1])
    for read in ("layerwise_rates", "gradient_norms"):
        expected_values = getattr(expected_optimizer, read)()
        assert getattr(optimizer, read)() == pytest.approx(expected_values, rel=1e-5)


COMMON = {"eta": 0.1, "weight_decay_rate": 0.01, "max_rate": 0.5}


@pytest.mark.parametrize(
    "how",
    [
        {},
        long({"graph": False}),
        {"loss_scale": 8.0},
        long({"arguments": {"loss_scale_factor": 8.0}}),
        long({"arguments": {"exclude_from_layer_adaptation": []}}),
        {"arguments": {"gradient_accumulation_steps": 2}, "graph": False},
        long({"arguments": {"jit_compile": True}}),
        long({"arguments": {"jit_compile": True}, "graph": False}),
        long({"arguments": {"jit_compile": True}, "loss_scale": 8.0}),
    ],
    ids=str,
)
def test_measured_norms(two_replicas, how):
    how = dict(how)
    arguments = {**COMMON, "gradient_norms": "per_example", **how.pop("arguments", {})}
    one_device = tf.distribute.get_strategy()
    expected = train(one_device, lambda: paper(CLARS, 0.5, **arguments), measured=True, **how)
    assert_close(train(two_replicas, lambda: paper(CLARS, 0.5, **arguments), measured=True, **how), expected)


@pytest.mark.parametrize(
    "dtypes, tolerance",
    [long(("float64", "float64"), 1e-6), (("float64", "float32"), 1e-6), (("float16", "float16"), 2e-2)],
    ids=str,
)
def test_variables_of_other_dtypes_than_the_norms(two_replicas, dtypes, tolerance):
    """In float64 the handed norms, float32, limit the agreement; in float16 each of the 4 steps rounds weights of 4."""
    arguments = {**COMMON, "gradient_norms": "per_example"}
    one_device = tf.distribute.get_strategy()
    one, _ = train(one_device, lambda: paper(CLARS, 0.5, **arguments), measured=True, dtypes=dtypes)
    two, optimizer = train(two_replicas, lambda: paper(CLARS, 0.5, **arguments), measured=True, dtypes=dtypes)
    for (found, copy), (expected,) in zip(two, one, strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
        np.testing.assert_array_equal(found, copy)
    assert [v.dtype for v in optimizer._trainable_variables] == list(dtypes)


@pytest.mark.parametrize("how", [long({}), {"loss_scale": 8.0}], ids=str)
def test_lars(two_replicas, how):
    one_device = tf.distribute.get_strategy()
    expected = train(one_device, lambda: paper(LARS, 0.5, **COMMON), **how)
    assert_close(train(two_replicas, lambda: paper(LARS, 0.5, **COMMON), **how), expected)


def test_replica_norms_are_the_mean_of_the_replicas(two_replicas):
    _, optimizer = train(two_replicas, lambda: make(CLARS, 0.5), steps=1)
    expected = []
    for part in PARTS[2]:
        error = 2 * (X[part] @ KERNEL + BIAS - Y[part]) / 3 / 4
        expected.append(np.linalg.norm(X[part].T @ error))
    assert optimizer.gradient_norms() == pytest.approx({"kernel": np.mean(expected)}, rel=1e-5)


def test_norms_travel_in_the_one_all_reduce_of_the_gradients(two_replicas, monkeypatch):
    calls = []
    original = tf.distribute.ReplicaContext.all_reduce

    def counting(self, op, value, *args, **kwargs):
        calls.append(len(value))
        return original(self, op, value, *args, **kwargs)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", counting)
    train(two_replicas, lambda: paper(CLARS, 0.5), measured=True, steps=1)
    # Once on each of the two replicas: kernel, bias and the packed norms.
    assert calls == [3, 3]


def test_fit_under_a_strategy(two_replicas):
    def fit(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            model.compile(optimizer=paper(LARS, 0.5, **COMMON), loss="mse")
        model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return model.get_weights(), model.optimizer.layerwise_rates()

    (one, one_rates), (two, two_rates) = fit(tf.distribute.get_strategy()), fit(two_replicas)
    for single, double in zip(one, two, strict=True):
        np.testing.assert_allclose(double, single, rtol=1e-5, atol=1e-6)
    assert list(two_rates.values()) == pytest.approx(list(one_rates.values()), rel=1e-5)


def test_accumulation_that_keras_cannot_do_says_what_to_do(two_replicas):
    with pytest.raises(RuntimeError, match=r"LargeBatchModel\(micro_batch_size"):
        train(two_replicas, lambda: make(CLARS, 0.5, gradient_accumulation_steps=2))


@pytest.mark.parametrize(
    "cls, jit_compile, dtypes",
    [
        long(CLARS, False, ("float32", "float32")),
        (CLARS, True, ("float32", "float16")),
        (LARS, False, ("bfloat16", "float16")),
    ],
    ids=str,
)
def test_a_gradient_that_is_one_object_on_two_replicas(cls, jit_compile, dtypes, two_replicas):
    """A constant, say: tf.distribute takes it for a tensor of no replica, beside others that are of each."""
    with two_replicas.scope():
        trained = [keras.Variable(np.ones((2, 2)), name=name, dtype=dtypes[i]) for i, name in enumerate("ab")]
        optimizer = make(cls, 0.1, eta=0.1, jit_compile=jit_compile)
        optimizer.build(trained)
    constant = tf.ones((2, 2), dtypes[0])

    @tf.function(autograph=False)
    def step():
        share = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, dtypes[1]) + 1
        optimizer.apply([constant, share * tf.ones((2, 2), dtypes[1])], trained)

    two_replicas.run(step)
    # Gradients of norm 2 + 2, and 2 + 4; CLARS adds up the replicas' norms.
    assert optimizer.gradient_norms() == pytest.approx({"a": 4.0, "b": 6.0}, rel=1e-3)
