"""Our own loop against Keras's, and two replicas against one device with the whole batch.

TensorFlow only: it tests tf.distribute. tests/jax/test_several_devices.py tests keras.distribution.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.distribute.fit import fit
from tf_largebatch.norms import brute_force_gradient_norms

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH, STEPS = 12, 2
ONE_DEVICE = tf.distribute.get_strategy()


def examples(size=BATCH * STEPS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 6, 6, 2)).astype("float32"), rng.integers(0, 3, size)


def batches(size=BATCH * STEPS, epochs=1, batch_size=BATCH):
    return tf.data.Dataset.from_tensor_slices(examples(size)).batch(batch_size).repeat(epochs)


def network(batch_norm):
    """`batch_norm`: None, "replica" or "synchronized"."""
    keras.utils.set_random_seed(0)
    norm = [] if batch_norm is None else [L.BatchNormalization(momentum=0.5, synchronized=batch_norm == "synchronized")]
    stack = [L.Conv2D(4, 3, padding="same"), *norm, L.ReLU(), L.Conv2D(5, 3, strides=2), L.Flatten(), L.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 2)), *stack], name="net")


def compiled(optimizer, batch_norm=None, strategy=ONE_DEVICE, policy="float32", **arguments):
    keras.config.set_dtype_policy(policy)
    with strategy.scope():
        model = lb.LargeBatchModel(network(batch_norm), **arguments)
        model.compile(optimizer(), CROSS_ENTROPY, metrics=["accuracy"], jit_compile=False)
    return model


def trained(optimizer, strategy=ONE_DEVICE, epochs=2, **arguments):
    model = compiled(optimizer, strategy=strategy, **arguments)
    fit(model, batches(epochs=epochs), epochs=epochs, steps_per_epoch=STEPS, verbose=0)
    return model


def assert_close(model, expected, variables="weights"):
    for one, other in zip(getattr(model, variables), getattr(expected, variables), strict=True):
        # Four updates on sums over 12 examples against sums of two sums over 6.
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-5, err_msg=one.path)
        copies = [c.numpy() for c in model.distribute_strategy.experimental_local_results(one.value)]
        np.testing.assert_array_equal(copies[0], copies[-1], err_msg=one.path)


def clars(**arguments):
    return lambda: paper(lb.CLARS, 0.5, eta=0.05, weight_decay_rate=0.01, **arguments)


def lars():
    return paper(lb.LARS, 0.5, eta=0.05, weight_decay_rate=0.01)


def sgd():
    return keras.optimizers.SGD(0.1, 0.9)


@pytest.mark.parametrize("wrapped", [True, long(False)])
def test_on_one_device_it_is_kerass_fit(wrapped):
    models = [compiled(clars() if wrapped else sgd, "replica") for _ in range(2)]
    if not wrapped:
        models = [keras.models.clone_model(model.model) for model in models]
        for model in models:
            keras.utils.set_random_seed(0)
            model.compile(sgd(), CROSS_ENTROPY, metrics=["accuracy"], jit_compile=False)
        models[1].set_weights(models[0].get_weights())
    history = fit(
        models[0],
        batches(epochs=2),
        epochs=3,
        initial_epoch=1,
        steps_per_epoch=STEPS,
        validation_data=batches(BATCH + 1),
        verbose=0,
    )
    expected = models[1].fit(
        batches(epochs=2),
        epochs=3,
        initial_epoch=1,
        steps_per_epoch=STEPS,
        validation_data=batches(BATCH + 1),
        verbose=0,
    )
    assert history.epoch == expected.epoch
    for name, values in expected.history.items():
        # TensorFlow may add up in another order: one thread more or less is enough.
        np.testing.assert_allclose(history.history[name], values, rtol=1e-6, err_msg=name)
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


# Of all optimizers with and without batch norm; a micro-batch of a replica is another than one device's.
@pytest.mark.parametrize(
    "optimizer, batch_norm, arguments",
    [
        (clars(), None, {"micro_batch_size": 3}),
        long(clars(jit_compile=True), None, {}),
        long(clars(gradient_norms="per_example", classic_momentum=False), "synchronized", {}),
        long(lars, "synchronized", {}),
        long(sgd, None, {"micro_batch_size": 3}),
    ],
    ids=["clars-micro", "clars-compiled", "clars-popular", "lars", "sgd-micro"],
)
def test_two_replicas_equal_one_device(two_replicas, optimizer, batch_norm, arguments):
    found = trained(optimizer, two_replicas, batch_norm=batch_norm, **arguments)
    assert_close(found, trained(optimizer, batch_norm=batch_norm, **arguments))


@pytest.mark.parametrize("optimizer", [clars(), long(lars)], ids=["clars", "lars"])
def test_batch_norm_of_two_replicas_is_that_of_two_micro_batches(two_replicas, optimizer):
    """Not synchronized, each replica normalizes by its own half: so does one device by micro-batches of that size.

    The gradients and norms are the same; the moving averages are taken from both halves, in another way.
    """
    found = trained(optimizer, two_replicas, batch_norm="replica")
    expected = trained(optimizer, batch_norm="replica", micro_batch_size=BATCH // 2)
    assert_close(found, expected, "trainable_weights")
    for variable in found.non_trainable_weights:
        copies = [c.numpy() for c in two_replicas.experimental_local_results(variable.value)]
        np.testing.assert_array_equal(*copies)


def test_moving_averages_become_the_mean_of_the_replicas(two_replicas):
    x, _ = examples()
    model = trained(lambda: keras.optimizers.SGD(0.0), two_replicas, epochs=1, batch_norm="replica")
    features = model.model.layers[0](x).numpy().reshape(STEPS, 2, BATCH // 2, -1, 4)
    mean = np.zeros((2, 4))
    for step in range(STEPS):
        mean = 0.5 * mean + 0.5 * features[step].mean((1, 2))
    np.testing.assert_allclose(model.model.layers[1].moving_mean.numpy(), mean.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm_examples", [long(None), 4])
def test_each_replica_draws_its_share_of_a_sample(two_replicas, norm_examples):
    """The first `norm_examples` of each replica's half; s_k is the mean over all that were drawn."""
    x, y = examples(BATCH)
    model = compiled(lambda: paper(lb.CLARS, 0.0), strategy=two_replicas, norm_examples=norm_examples)
    expected = brute_force_gradient_norms(network(None), x, y, CROSS_ENTROPY)
    fit(model, batches(BATCH), epochs=1, steps_per_epoch=1, verbose=0)
    half = BATCH // 2
    drawn = [i for start in (0, half) for i in range(start, start + (norm_examples or half))]
    found = model.optimizer.gradient_norms().values()
    for norm, of_examples in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(norm, np.mean(np.asarray(of_examples)[drawn]), rtol=1e-5)


def test_replica_norms_are_the_mean_over_the_replicas(two_replicas):
    x, y = examples(BATCH)
    net = network(None)
    norms = []
    for part in np.split(np.arange(BATCH), 2):
        with tf.GradientTape() as tape:
            loss = CROSS_ENTROPY(y[part], net(x[part]))
        norms.append([np.linalg.norm(g) for g in tape.gradient(loss, [v.value for v in net.trainable_variables])])
    model = compiled(lambda: paper(lb.CLARS, 0.0, gradient_norms="replica"), strategy=two_replicas)
    fit(model, batches(BATCH), epochs=1, steps_per_epoch=1, verbose=0)
    np.testing.assert_allclose(list(model.optimizer.gradient_norms().values()), np.mean(norms, 0), rtol=1e-5)


@pytest.mark.parametrize("arguments", [long({}), {"norm_examples": 4, "micro_batch_size": 3}], ids=str)
def test_the_norms_add_no_communication_to_the_step(two_replicas, arguments):
    def all_reduces(optimizer):
        model = compiled(optimizer, strategy=two_replicas, **arguments)
        fit(model, batches(BATCH), epochs=1, steps_per_epoch=1, verbose=0)
        step = tf.autograph.experimental.do_not_convert(model.train_step)
        step = tf.function(lambda x, y, step=step: two_replicas.run(step, args=((x, y),)), autograph=False)
        x, y = (tf.constant(a[: BATCH // 2]) for a in examples())
        definition = step.get_concrete_function(x, y).graph.as_graph_def()
        bodies = [definition.node, *(f.node_def for f in definition.library.function)]
        return [node.op for nodes in bodies for node in nodes if "Collective" in node.op and "Group" not in node.op]

    plain, measured = all_reduces(sgd), all_reduces(clars(gradient_norms="per_example"))
    assert measured == plain
    # Each replica's share of one all-reduce.
    assert len(plain) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "policy, optimizer",
    [("mixed_float16", clars()), long("mixed_float16", lars), long("mixed_bfloat16", clars())],
    ids=["float16-clars", "float16-lars", "bfloat16-clars"],
)
def test_mixed_precision_on_two_replicas(two_replicas, policy, optimizer):
    """The passes round, and round the same on one device: what is added up afterwards is float32."""
    found = trained(optimizer, two_replicas, policy=policy, batch_norm="synchronized")
    expected = trained(optimizer, policy=policy, batch_norm="synchronized")
    for one, other in zip(found.trainable_weights, expected.trainable_weights, strict=True):
        # Batch norm's statistics are summed in another order, which flips roundings to 8 or 11 bits now and then.
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=2e-3)
    inner = getattr(found.optimizer, "inner_optimizer", found.optimizer)
    assert np.isfinite(list(inner.layerwise_rates().values())).all()
    assert all(v.dtype == "float32" for v in inner.variables if "layerwise" in v.path or "norms" in v.path)


# Keras looks at the first replica's gradients only.
@pytest.mark.parametrize(
    "optimizer, arguments, broken",
    [long(clars(), {}, 0), (clars(), {}, 1), long(lars, {}, 1), long(sgd, {"micro_batch_size": 3}, 1)],
    ids=["clars-first", "clars-second", "lars-second", "sgd-micro-second"],
)
def test_an_overflow_on_any_replica_skips_the_step_on_all(two_replicas, optimizer, arguments, broken):
    model = compiled(optimizer, strategy=two_replicas, policy="mixed_float16", **arguments)
    x, y = examples()
    x[broken * BATCH // 2 + 1, 0, 0, 0] = np.nan  # in the first of two steps
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    before = [v.numpy() for v in model.weights]
    fit(model, data, epochs=1, steps_per_epoch=1, verbose=0)
    for one, other in zip(model.weights, before, strict=True):
        for copy in two_replicas.experimental_local_results(one.value):
            np.testing.assert_array_equal(copy.numpy(), other)
    initial = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()).initial_scale
    assert float(model.optimizer.dynamic_scale.numpy()) == initial / 2
    assert int(model.optimizer.iterations.numpy()) == 0
    fit(model, data.skip(1), epochs=1, steps_per_epoch=1, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 1
    assert all(np.isfinite(v.numpy()).all() for v in model.weights)


@pytest.mark.long
def test_an_evaluation_batch_that_does_not_reach_every_replica(two_replicas):
    def evaluated(strategy):
        model = compiled(clars(), strategy=strategy)
        settings = {"epochs": 1, "steps_per_epoch": 1, "verbose": 0}
        return fit(model, batches(BATCH), validation_data=batches(BATCH + 1), **settings).history

    one, two = evaluated(ONE_DEVICE), evaluated(two_replicas)
    assert set(one) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-5)


def test_a_batch_that_cannot_be_shared(two_replicas):
    model = compiled(clars(), strategy=two_replicas)
    odd = batches(11, batch_size=11).map(lambda x, y: (tf.ensure_shape(x, (11, 6, 6, 2)), y))
    with pytest.raises(ValueError, match=r"multiple of the 2 replicas; received batch_size=11: .* are 10 and 12"):
        fit(model, odd, epochs=1, steps_per_epoch=1, verbose=0)


def test_too_few_batches():
    with pytest.raises(ValueError, match="training must hold 4 batches, 2 for each epoch to come; it holds 2"):
        fit(compiled(clars()), batches(), epochs=2, steps_per_epoch=2)


def test_a_model_that_is_not_compiled():
    with pytest.raises(ValueError, match="net must be compiled"):
        fit(network(None), batches(), epochs=1, steps_per_epoch=1)


def test_xla_for_several_replicas(two_replicas):
    model = compiled(clars(), strategy=two_replicas)
    model.jit_compile = True
    with pytest.raises(
        ValueError, match=r"jit_compile must be False with 2 replicas.*the optimizer's jit_compile=True"
    ):
        fit(model, batches(), epochs=1, steps_per_epoch=1, verbose=0)


@pytest.mark.long
@pytest.mark.parametrize("own", [True, long(False)], ids=["fit here", "Keras's fit"])
def test_a_replica_without_examples_adds_nothing(two_replicas, own):
    """The last of three batches has one example. Keras divides each replica's mean loss by the number of replicas, so
    that its gradient and norms are half of one device's.
    """
    data = tf.data.Dataset.from_tensor_slices(examples(9)).batch(4)
    models = [compiled(clars(), strategy=strategy) for strategy in (ONE_DEVICE, two_replicas)]
    for model in models:
        if own:
            fit(model, data, epochs=1, steps_per_epoch=3, verbose=0)
        else:
            model.fit(data, verbose=0)
    one, two = (np.array(list(model.optimizer.gradient_norms().values())) for model in models)
    np.testing.assert_allclose(two, one / 2, rtol=1e-4)
    for variable in models[1].weights:
        copies = [c.numpy() for c in two_replicas.experimental_local_results(variable.value)]
        assert np.isfinite(copies[0]).all()
        np.testing.assert_array_equal(*copies)
