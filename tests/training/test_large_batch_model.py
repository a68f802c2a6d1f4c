"""LargeBatchModel: the step is Keras's own but for the norms, and the norms are the right ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.norms import brute_force_gradient_norms
from tf_largebatch.training.differentiate import value_and_gradients

pytestmark = [
    pytest.mark.each_value,
    pytest.mark.quick_on_jax(
        "test_batches_of_one_make_clars_lars[True]",
        "test_micro_batches_equal_the_whole_batch[<lambda>0-5]",
        "test_mixed_precision_hands_over_unscaled_norms[mixed_float16]",
        "test_a_norm_that_overflows_skips_the_step_and_halves_the_scale",
        "test_bad_arguments",
        "test_an_unsupported_layer_fails_before_any_step",
    ),
]

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 12
ON_JAX = keras.backend.backend() == "jax"


def images(size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 6, 6, 2)).astype("float32"), rng.integers(0, 3, size)


def network(batch_norm=True, regularizer=None, seed=0):
    keras.utils.set_random_seed(seed)
    stack = [keras.Input((6, 6, 2)), L.Conv2D(4, 3, padding="same", kernel_regularizer=regularizer)]
    stack += [L.BatchNormalization(momentum=0.5), L.ReLU()] if batch_norm else [L.ReLU()]
    return keras.Sequential([*stack, L.Conv2D(5, 3, strides=2), L.Flatten(), L.Dense(3)], name="net")


def compiled(model, optimizer, graph=False, **kwargs):
    """The few steps of a test run eagerly unless it is about graphs: tracing takes longer than they do on TensorFlow.

    On JAX each operation by itself takes long to compile.
    """
    eager = not graph and not ON_JAX and "jit_compile" not in kwargs
    model.compile(optimizer=optimizer, loss=CROSS_ENTROPY, metrics=["accuracy"], **{"run_eagerly": eager, **kwargs})
    return model


def weights(model):
    return [v.numpy() for v in model.weights]


def assert_weights_close(a, b, rtol=2e-5, atol=1e-6):
    for one, other in zip(weights(a), weights(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def plain_gradients(net, loss, x):
    _, gradients, _ = value_and_gradients(lambda: net(x, training=True), loss, net.trainable_variables)
    return [ops.convert_to_numpy(g) for g in gradients]


def norm_values(optimizer):
    """Without the layers' running numbers, which differ from model to model."""
    return list(optimizer.gradient_norms().values())


def test_the_optimizer_receives_the_mean_per_example_norms():
    net = network()
    x, y = images()
    expected = brute_force_gradient_norms(net, x, y, CROSS_ENTROPY)
    model = compiled(lb.LargeBatchModel(net), paper(lb.CLARS, 0.1, gradient_norms="per_example"))
    model.fit(x, y, batch_size=BATCH, verbose=0)
    found = model.optimizer.gradient_norms()
    for v in net.trainable_variables:
        np.testing.assert_allclose(found[v.path], np.mean(expected[v.path]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classic_momentum", [True, long(False)])
def test_batches_of_one_make_clars_lars(classic_momentum):
    x, y = images(10)
    settings = {"eta": 0.01, "classic_momentum": classic_momentum}
    clars = compiled(lb.LargeBatchModel(network(batch_norm=False)), paper(lb.CLARS, 1.0, **settings))
    lars = compiled(network(batch_norm=False), paper(lb.LARS, 1.0, **settings))
    for model in (clars, lars):
        model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    assert_weights_close(clars.model, lars)


@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.SGD(0.1, 0.9), long(lambda: keras.optimizers.Adam()), long(lb.LARS)]
)
def test_other_optimizers_train_as_without_the_wrapper(make):
    x, y = images(30)
    wrapped, plain = compiled(lb.LargeBatchModel(network()), make()), compiled(network(), make())
    histories = [m.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0).history for m in (wrapped, plain)]
    assert_weights_close(wrapped.model, plain, rtol=0, atol=0)
    assert histories[0] == histories[1]
    np.testing.assert_array_equal(wrapped.predict(x, verbose=0), plain.predict(x, verbose=0))
    assert wrapped.evaluate(x, y, verbose=0) == plain.evaluate(x, y, verbose=0)


def test_measuring_changes_neither_gradient_nor_metrics_nor_moving_averages():
    """With every tensor excluded CLARS is SGD with momentum, measured or not."""
    x, y = images(24)
    everything = {"exclude_from_layer_adaptation": [lambda v: True], "momentum": 0.9}
    measured = compiled(lb.LargeBatchModel(network()), paper(lb.CLARS, 0.1, **everything))
    plain = compiled(network(), keras.optimizers.SGD(0.1, 0.9))
    histories = [m.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0).history for m in (measured, plain)]
    # Four updates, each summing the gradient in another order.
    assert_weights_close(measured.model, plain, rtol=1e-4, atol=1e-5)
    for key, values in histories[1].items():
        np.testing.assert_allclose(histories[0][key], values, rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 5, 12])
@pytest.mark.parametrize("optimizer", [lambda: paper(lb.CLARS, 1.0), lambda: keras.optimizers.SGD(0.1, 0.9)])
def test_micro_batches_equal_the_whole_batch(micro_batch_size, optimizer):
    x, y = images(24)
    whole = compiled(lb.LargeBatchModel(network(batch_norm=False, regularizer="l2")), optimizer())
    parts = lb.LargeBatchModel(network(batch_norm=False, regularizer="l2"), micro_batch_size=micro_batch_size)
    compiled(parts, optimizer(), graph=micro_batch_size in (1, 5))
    histories = [m.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0).history for m in (whole, parts)]
    assert_weights_close(whole.model, parts.model, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(histories[0]["accuracy"], histories[1]["accuracy"], rtol=1e-6)
    if isinstance(whole.optimizer, lb.CLARS):
        np.testing.assert_allclose(norm_values(whole.optimizer), norm_values(parts.optimizer), rtol=1e-4)


def test_micro_batches_of_eight_give_the_authors_norms():
    """`gradient_norms="replica"`: the mean over micro-batches of the norm of each one's mean gradient."""
    x, y = images(24)
    net = network(batch_norm=False)
    expected = []
    for part in np.split(np.arange(24), 3):
        gradients = plain_gradients(net, lambda p, part=part: CROSS_ENTROPY(y[part], p), x[part])
        expected.append([np.linalg.norm(g) for g in gradients])
    model = compiled(lb.LargeBatchModel(net, micro_batch_size=8), paper(lb.CLARS, 0.1, gradient_norms="replica"))
    model.fit(x, y, batch_size=24, verbose=0, shuffle=False)
    np.testing.assert_allclose(norm_values(model.optimizer), np.mean(expected, 0), rtol=1e-5)


def test_gradient_accumulation_in_the_optimizer_equals_one_big_batch():
    x, y = images(24)
    whole = compiled(lb.LargeBatchModel(network(batch_norm=False)), paper(lb.CLARS, 1.0))
    parts = compiled(lb.LargeBatchModel(network(batch_norm=False)), paper(lb.CLARS, 1.0, gradient_accumulation_steps=3))
    whole.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    parts.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert_weights_close(whole.model, parts.model)
    np.testing.assert_allclose(norm_values(whole.optimizer), norm_values(parts.optimizer), rtol=1e-5)


def test_a_sample_of_the_batch():
    net = network()
    x, y = images()
    expected = brute_force_gradient_norms(net, x, y, CROSS_ENTROPY)
    model = compiled(lb.LargeBatchModel(net, norm_examples=5), paper(lb.CLARS, 0.0))
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    found = model.optimizer.gradient_norms()
    for v in net.trainable_variables:
        np.testing.assert_allclose(found[v.path], np.mean(expected[v.path][:5]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("policy", ["mixed_float16", long("mixed_bfloat16")])
def test_mixed_precision_hands_over_unscaled_norms(policy):
    x, y = images()
    full = compiled(lb.LargeBatchModel(network()), paper(lb.CLARS, 0.01))
    full.fit(x, y, batch_size=BATCH, verbose=0)
    keras.config.set_dtype_policy(policy)
    half = compiled(lb.LargeBatchModel(network()), paper(lb.CLARS, 0.01))
    before = weights(half.model)
    half.fit(x, y, batch_size=BATCH, verbose=0)
    inner = getattr(half.optimizer, "inner_optimizer", half.optimizer)
    assert (policy == "mixed_float16") == (inner is not half.optimizer)
    # bfloat16 has 8 bits; biases before batch norm, whose norms cancel, have no layer-wise rate to compare.
    rates = zip(inner.layerwise_rates().values(), full.optimizer.layerwise_rates().values(), strict=True)
    for found, expected in rates:
        np.testing.assert_allclose(found, expected, rtol=0.05)
    assert any(np.any(a != b) for a, b in zip(before, weights(half.model), strict=True))
    losses = half.fit(x, y, batch_size=BATCH, epochs=5, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))


def test_a_norm_that_overflows_skips_the_step_and_halves_the_scale():
    keras.config.set_dtype_policy("mixed_float16")
    # The contributions of two examples cancel in the gradient, but each is beyond float16 once the loss is scaled.
    net = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones")])
    x, y = np.array([[200.0], [-200.0]], "float32"), np.array([[0.0], [0.0]], "float32")
    model = lb.LargeBatchModel(net)
    optimizer = keras.optimizers.LossScaleOptimizer(paper(lb.CLARS, 0.1), initial_scale=2.0**24)
    model.compile(optimizer, loss="mse")
    model.fit(x, y, batch_size=2, verbose=0)
    assert float(net.weights[0].numpy()[0, 0]) == 1.0
    assert float(optimizer.dynamic_scale) == 2.0**23


def test_regularizers_count_for_the_gradient_and_not_for_the_norms():
    x, y = images()
    free, regular = network(), network(regularizer=keras.regularizers.L2(0.3))
    models = [compiled(lb.LargeBatchModel(net), paper(lb.CLARS, 0.1, momentum=0.0)) for net in (free, regular)]
    before = free.layers[0].kernel.numpy()
    for model in models:
        model.fit(x, y, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(*(norm_values(m.optimizer) for m in models), rtol=1e-6)
    rate = next(iter(models[0].optimizer.layerwise_rates().values()))
    # d/dw of 0.3 w^2
    difference = free.layers[0].kernel.numpy() - regular.layers[0].kernel.numpy()
    np.testing.assert_allclose(difference, 0.1 * rate * 0.6 * before, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("norm_examples", [long(None), 5])
def test_compiled_by_xla_it_agrees(norm_examples):
    x, y = images(24)
    models = [
        compiled(lb.LargeBatchModel(network(), norm_examples=norm_examples), paper(lb.CLARS, 1.0), jit_compile=jit)
        for jit in (False, True)
    ]
    for model in models:
        model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    assert_weights_close(models[0].model, models[1].model, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_xla_with_micro_batches_of_a_fixed_batch():
    tf = pytest.importorskip("tensorflow")
    x, y = images(24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(12, drop_remainder=True)
    models = [
        compiled(lb.LargeBatchModel(network(), micro_batch_size=4), paper(lb.CLARS, 1.0), jit_compile=jit)
        for jit in (False, True)
    ]
    for model in models:
        model.fit(data, epochs=2, verbose=0)
    assert_weights_close(models[0].model, models[1].model, rtol=1e-4, atol=1e-5)


def test_steps_are_traced_once_and_a_ragged_last_batch_is_trained_on():
    x, y = images(30)
    model = compiled(lb.LargeBatchModel(network(), norm_examples=10), paper(lb.CLARS, 0.1), graph=True)
    sizes = []
    step = model._update
    model._update = lambda streams, *args: sizes.append(streams[0].inputs.shape[0]) or step(streams, *args)
    model.fit(x, y, batch_size=12, epochs=3, verbose=0)
    assert int(model.optimizer.iterations) == 9
    # On TensorFlow once for any size, from Keras 3.16 on for the first size before; on JAX once for each size.
    assert sizes == [12, 6] if ON_JAX else sizes in ([None], [12, None])


@pytest.mark.skipif(ON_JAX, reason="TensorFlow only: on JAX Keras builds everything before it traces")
def test_what_the_first_step_creates_does_not_have_it_traced_again():
    """The optimizer's state, the loss scale, a metric for each output's loss, metrics that know the outputs."""
    inputs = keras.Input((3,))
    net = keras.Model(inputs, [L.Dense(2, name="a")(inputs), L.Dense(1, name="b")(inputs)])
    model = lb.LargeBatchModel(net)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    metrics = [["mae", keras.metrics.R2Score()], ["accuracy"]]
    model.compile(optimizer, ["mse", "binary_crossentropy"], metrics=metrics, weighted_metrics=[[], ["mse"]])
    traces, tests = [], []
    step, compute_metrics = model._update, model.compute_metrics
    model._update = lambda *args: traces.append(1) or step(*args)
    model.compute_metrics = lambda *args, **kwargs: tests.append(1) or compute_metrics(*args, **kwargs)
    x, y, weights = np.ones((4, 3)), [np.ones((4, 2)), np.ones((4, 1))], np.ones(4)
    logs = model.fit(x, y, sample_weight=weights, batch_size=4, epochs=2, verbose=0).history
    assert len(traces) == len(tests) == 1 and int(optimizer.iterations) == 2
    assert {"a_loss", "b_loss", "a_mae", "a_r2_score", "b_accuracy", "b_mse"} < set(logs)
    model.compile(optimizer, ["mse", "binary_crossentropy"], metrics=metrics)
    tests.clear()
    model.evaluate(x, y, sample_weight=weights, batch_size=4, verbose=0)
    assert len(tests) == 1


def test_saved_and_loaded_in_mid_training_it_continues_bit_for_bit(tmp_path):
    x, y = images(24)
    fit = {"batch_size": 12, "shuffle": False, "verbose": 0}
    straight = compiled(lb.LargeBatchModel(network(), norm_examples=7), paper(lb.CLARS, 1.0))
    straight.fit(x, y, epochs=4, **fit)
    first = compiled(lb.LargeBatchModel(network(), norm_examples=7), paper(lb.CLARS, 1.0))
    first.fit(x, y, epochs=2, **fit)
    first.save(tmp_path / "m.keras")
    second = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(second, lb.LargeBatchModel) and second.norm_examples == 7
    second.fit(x, y, epochs=2, **fit)
    assert_weights_close(straight.model, second.model, rtol=0, atol=0)


def test_the_wrapped_model_keeps_names_weights_and_checkpoints(tmp_path):
    net = network()
    paths = [v.path for v in net.weights]
    x, y = images()
    model = compiled(lb.LargeBatchModel(net), paper(lb.CLARS, 0.1))
    model.fit(x, y, verbose=0)
    assert model.model is net and [v.path for v in net.weights] == paths
    assert [v.path for v in model.weights] == paths
    net.save_weights(tmp_path / "net.weights.h5")
    net.save(tmp_path / "net.keras")
    fresh = network(seed=1)
    fresh.load_weights(tmp_path / "net.weights.h5")
    assert_weights_close(fresh, net, rtol=0, atol=0)
    assert type(keras.models.load_model(tmp_path / "net.keras")) is keras.Sequential


def test_named_inputs_and_outputs_with_several_losses():
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    hidden = L.concatenate([L.Dense(5, activation="relu")(a), L.Dense(5, activation="relu")(b)])
    net = keras.Model({"a": a, "b": b}, {"p": L.Dense(2, name="p")(hidden), "q": L.Dense(1, name="q")(hidden)})
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(8, 3)), "b": rng.normal(size=(8, 4))}
    y = {"p": rng.integers(0, 2, 8), "q": rng.normal(size=(8, 1))}
    model = lb.LargeBatchModel(net)
    losses = {"p": CROSS_ENTROPY, "q": "mse"}
    model.compile(paper(lb.CLARS, 0.1, momentum=0.0), loss=losses, loss_weights={"p": 1.0, "q": 0.5})
    before = [v.numpy() for v in net.trainable_variables]

    def loss(out):
        return CROSS_ENTROPY(y["p"], out["p"]) + 0.5 * keras.losses.MeanSquaredError()(y["q"], out["q"])

    gradients = plain_gradients(net, loss, {k: ops.convert_to_tensor(v, "float32") for k, v in x.items()})
    model.fit(x, y, batch_size=8, verbose=0)
    rates = list(model.optimizer.layerwise_rates().values())
    for v, w, g, rate in zip(net.trainable_variables, before, gradients, rates, strict=True):
        np.testing.assert_allclose(v.numpy(), w - 0.1 * rate * g, rtol=1e-4, atol=1e-6)


def test_nested_models_with_layers_of_one_name():
    def tower():
        return keras.Sequential([keras.Input((4,)), L.Dense(4, name="same", activation="relu")])

    inputs = keras.Input((4,))
    net = keras.Model(inputs, L.Dense(3)(L.add([tower()(inputs), tower()(inputs)])))
    rng = np.random.default_rng(0)
    model = compiled(lb.LargeBatchModel(net), paper(lb.CLARS, 0.1))
    model.fit(rng.normal(size=(8, 4)), rng.integers(0, 3, 8), verbose=0)
    assert len(model.optimizer.layerwise_rates()) == len(net.trainable_variables)


def test_a_subclassed_model_built_by_fit():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.hidden, self.head, self.dropout = L.Dense(4), L.Dense(3), L.Dropout(0.5)

        def call(self, x, training=None):
            return self.head(self.dropout(self.hidden(x), training=training))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
    model = compiled(lb.LargeBatchModel(Net()), paper(lb.CLARS, 0.1))
    model.fit(x, y, verbose=0)
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {"net"}
    assert model.predict(x, verbose=0).shape == (8, 3)


def test_sample_and_class_weights_and_several_steps_per_call():
    x, y = images(24)
    model = compiled(lb.LargeBatchModel(network()), paper(lb.CLARS, 0.1), steps_per_execution=2, graph=True)
    weights_ = np.linspace(0, 2, 24)
    model.fit(x, y, batch_size=12, sample_weight=weights_, verbose=0)
    model.fit(x, y, batch_size=12, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, verbose=0)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.long
def test_eager_execution_agrees():
    x, y = images(24)
    models = [
        compiled(lb.LargeBatchModel(network()), paper(lb.CLARS, 1.0), run_eagerly=eager) for eager in (False, True)
    ]
    for model in models:
        model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    assert_weights_close(models[0].model, models[1].model)


@pytest.mark.long
def test_two_replicas_equal_one_device(two_replicas):
    tf = pytest.importorskip("tensorflow")
    x, y = images(24)
    one = compiled(lb.LargeBatchModel(network(batch_norm=False)), paper(lb.CLARS, 1.0))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
    one.fit(data, epochs=2, verbose=0)
    with two_replicas.scope():
        two = compiled(lb.LargeBatchModel(network(batch_norm=False)), paper(lb.CLARS, 1.0), graph=True)
    history = two.fit(data, epochs=2, verbose=0).history
    assert_weights_close(one.model, two.model, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm_values(one.optimizer), norm_values(two.optimizer), rtol=1e-4)
    np.testing.assert_allclose(history["loss"], one.history.history["loss"], rtol=1e-4)


class Unknown(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    "arguments, fit, words",
    [
        ({"norm_examples": 0}, {}, r"norm_examples must be a positive integer or None; received norm_examples=0"),
        ({"norm_examples": 2.5}, {}, r"norm_examples must be a positive integer or None; received norm_examples=2.5"),
        ({"micro_batch_size": -1}, {}, r"micro_batch_size must be .* received micro_batch_size=-1"),
        ({"norm_examples": 13}, {"batch_size": 12}, r"norm_examples must be at most the batch size 12; received .*13"),
        ({"micro_batch_size": 13}, {"batch_size": 12}, r"micro_batch_size must be at most the batch size 12"),
    ],
)
def test_bad_arguments(arguments, fit, words):
    x, y = images(24)
    with pytest.raises(ValueError, match=words):
        compiled(lb.LargeBatchModel(network(), **arguments), paper(lb.CLARS, 0.1)).fit(x, y, verbose=0, **fit)


def test_norm_examples_above_the_batch_of_a_dataset():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(images(24)).batch(12, drop_remainder=True)
    model = compiled(lb.LargeBatchModel(network(), norm_examples=13), paper(lb.CLARS, 0.1))
    with pytest.raises(ValueError, match="at most the batch size 12"):
        model.fit(data, verbose=0)


def test_an_unsupported_layer_fails_before_any_step():
    net = keras.Sequential([keras.Input((4,)), Unknown(name="odd"), L.Dense(3)])
    before = weights(net)
    model = compiled(lb.LargeBatchModel(net), paper(lb.CLARS, 0.1))
    with pytest.raises(ValueError, match=r"odd \(Unknown has no rule\)"):
        model.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
    for a, b in zip(before, weights(net), strict=True):
        np.testing.assert_array_equal(a, b)
    compiled(model, paper(lb.CLARS, 0.1, gradient_norms="replica")).fit(np.ones((8, 4)), np.zeros(8), verbose=0)


def test_an_unsupported_layer_is_measured_alone_where_that_is_allowed():
    net = keras.Sequential([keras.Input((4,)), Unknown(name="odd"), L.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    expected = brute_force_gradient_norms(net, x, y, CROSS_ENTROPY)
    model = compiled(lb.LargeBatchModel(net, allow_generic=True), paper(lb.CLARS, 0.1))
    model.fit(x, y, batch_size=8, verbose=0)
    for path, norm in model.optimizer.gradient_norms().items():
        np.testing.assert_allclose(norm, np.mean(expected[path]), rtol=1e-5)
    again = lb.LargeBatchModel.from_config(model.get_config(), custom_objects={"Unknown": Unknown})
    assert again.allow_generic


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), L.Dense(4, activation="relu"), L.Dense(3)], name="net")


ROWS = np.random.default_rng(0).normal(size=(8, 6)).astype("float32"), np.random.default_rng(1).integers(0, 3, 8)


def test_fit_takes_positional_arguments_and_asks_for_compile():
    with pytest.raises(ValueError, match=r"call `compile\(\)` before"):
        lb.LargeBatchModel(dense()).fit(*ROWS)
    history = compiled(lb.LargeBatchModel(dense()), paper(lb.CLARS, 0.1), run_eagerly=True).fit(*ROWS, 4, 2, 0)
    assert len(history.epoch) == 2


def test_it_exports_the_wrapped_model(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = compiled(lb.LargeBatchModel(dense()), paper(lb.CLARS, 0.1), run_eagerly=True)
    model.fit(*ROWS, verbose=0)
    model.export(str(tmp_path / "export"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(served.serve(ROWS[0]), model.predict(ROWS[0], verbose=0), rtol=1e-5, atol=1e-6)


def test_a_mask_reaches_the_wrapped_model():
    net = keras.Sequential([keras.Input((4, 3)), L.SimpleRNN(2)])
    x, mask = np.ones((2, 4, 3), "float32"), np.array([[True, True, False, False]] * 2)
    wrapped = lb.LargeBatchModel(net)
    np.testing.assert_array_equal(wrapped(x, mask=mask), net(x, mask=mask))
    assert np.any(wrapped(x, mask=mask) != wrapped(x))


def test_arguments_that_are_set_later_are_checked_and_used():
    model = compiled(lb.LargeBatchModel(dense()), paper(lb.CLARS, 0.0))
    model.fit(*ROWS, batch_size=8, shuffle=False, verbose=0)
    whole = norm_values(model.optimizer)
    model.norm_examples = 2
    model.fit(*ROWS, batch_size=8, shuffle=False, verbose=0)
    assert np.any(np.array(whole) != norm_values(model.optimizer))
    with pytest.raises(ValueError, match=r"micro_batch_size must be a positive integer, 'auto' or None; received .*=0"):
        model.micro_batch_size = 0
