"""The noise scale while training: against closed forms and against all gradients of all examples."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.callbacks import GradientNoiseScale, load_checkpoint, save_checkpoint
from tf_largebatch.callbacks.noise_scale import read_noise_scales
from tf_largebatch.core.noise_scale import estimates
from tf_largebatch.training.noise_scale import from_last_batch_norm

pytestmark = pytest.mark.each_value

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FROZEN = {"momentum": 0.0, "learning_rate": 0.0}
ON_JAX = keras.backend.backend() == "jax"


def data(size=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 5)).astype("float32"), rng.integers(0, 3, size)


def network(regularizer=None, seed=0):
    hidden = L.Dense(4, activation="tanh", kernel_regularizer=regularizer)
    net = keras.Sequential([keras.Input((5,)), hidden, L.Dense(3)], name="net")
    rng = np.random.default_rng(seed)  # the same weights on every backend
    net.set_weights([rng.normal(size=w.shape) / np.sqrt(len(w)) if w.ndim == 2 else w for w in net.get_weights()])
    return net


def compiled(net=None, optimizer=None, loss=CROSS_ENTROPY, graph=False, jit_compile=False, **kwargs):
    """A model whose few steps run eagerly unless asked for otherwise: tracing takes longer than they do."""
    model = lb.LargeBatchModel(net or network(), **kwargs)
    # On JAX each operation by itself takes long to compile.
    eager = not (graph or jit_compile or ON_JAX)
    optimizer = optimizer or keras.optimizers.SGD(**FROZEN)
    model.compile(optimizer, loss, jit_compile=jit_compile or ON_JAX, run_eagerly=eager)
    return model


def whole_batches(x, y):
    """Data in one batch whose size is known before it is drawn, as XLA needs it on TensorFlow."""
    if ON_JAX:
        return ((x, y) for _ in range(1))
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(len(x), drop_remainder=True)


def watched(model, x, y, **fit):
    callback = GradientNoiseScale(decay=fit.pop("decay", 0.95))
    arguments = {"batch_size": len(x), "shuffle": False, "verbose": 0, **fit}
    return callback, model.fit(x, y, callbacks=[callback], **arguments).history


def every_gradient(net, x, y):
    """{path: gradients of the examples, [B, D]}, by the equations of backpropagation for `network`, in float64."""
    first, offset, head, bias = (w.astype("float64") for w in net.get_weights())
    hidden = np.tanh(x @ first + offset)
    logits = hidden @ head + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    d = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    e = (d @ head.T) * (1 - hidden**2)
    found = x[:, :, None] * e[:, None], e, hidden[:, :, None] * d[:, None], d
    return {v.path: g.reshape(len(x), -1) for v, g in zip(net.trainable_variables, found, strict=True)}


def slow_estimates(gradients):
    """The squared expected gradient and the trace of the covariance, from [B, D]."""
    mean_squares, squared_mean = (gradients**2).sum(1).mean(), (gradients.mean(0) ** 2).sum()
    return estimates(mean_squares, squared_mean, len(gradients))


def assert_equals_slow(callback, gradients, rtol=2e-5):
    # Relative to the sums that the estimates are differences of, in float32.
    for path, found in callback.of_tensors().items():
        gradient, trace = slow_estimates(gradients[path])
        np.testing.assert_allclose([found.squared_gradient, found.variance], [gradient, trace], rtol, rtol * trace)
        np.testing.assert_allclose(found.noise_scale, trace / gradient if gradient > 0 else np.inf, rtol=100 * rtol)
    gradient, trace = np.sum([slow_estimates(g) for g in gradients.values()], axis=0)
    np.testing.assert_allclose(callback.of_network().noise_scale, trace / gradient, rtol=100 * rtol)


@pytest.mark.parametrize("jit_compile", [True] if ON_JAX else [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 8, 10])
def test_equals_the_gradients_of_all_examples(micro_batch_size, jit_compile):
    if jit_compile and micro_batch_size == 10 and not ON_JAX:
        return  # parts of different sizes: no program of fixed shapes
    net, (x, y) = network(), data()
    model = compiled(net, micro_batch_size=micro_batch_size, graph=True, jit_compile=jit_compile)
    callback = GradientNoiseScale()
    history = model.fit(whole_batches(x, y), callbacks=[callback], verbose=0).history
    assert_equals_slow(callback, every_gradient(net, x, y))
    assert history["noise_scale"] == [callback.of_network().noise_scale]


def test_layers_before_a_batch_normalization_are_left_out():
    """Its gradients are those of a batch; a frozen one normalizes each example by itself, and all layers count."""
    net = keras.Sequential([keras.Input((5,)), L.Dense(4), L.BatchNormalization(), L.Dense(3)])
    x, y = data(64)
    for trainable, counted in ((True, slice(2, None)), (False, slice(None))):
        net.layers[1].trainable = trainable
        callback, history = watched(compiled(net), x, y)
        kept = list(callback.of_tensors().values())[counted]
        expected = sum(one.variance for one in kept) / sum(one.squared_gradient for one in kept)
        assert len(kept) == 4 and history["noise_scale"] == [pytest.approx(expected)]


def test_what_is_from_the_last_batch_normalization_on():
    inputs = keras.Input((4,))
    block = keras.Sequential([L.Dense(4), L.BatchNormalization(scale=False)])
    x = L.Add()([block(inputs), L.Dense(4)(inputs)])
    net = keras.Model(inputs, L.Dense(2)(L.LayerNormalization()(x)))
    names = [v.path.split("/")[-1] for v in net.trainable_variables]
    kept = from_last_batch_norm(net, net.trainable_variables)
    # The branch beside the block comes after it; nothing that leads into the batch normalization is kept.
    assert [name for name, one in zip(names, kept, strict=True) if not one] == ["kernel", "bias"]
    bare = keras.Sequential([keras.Input((4,)), L.Dense(2), L.BatchNormalization(scale=False, center=False)])
    assert from_last_batch_norm(bare, bare.trainable_variables).all()  # nothing would be left


def test_linear_model_with_gaussian_gradients_of_known_covariance():
    """The loss is w . x, so that an example's gradient is x itself: tr(Sigma) / ||G||^2 = 14 / 0.56 = 25."""
    mean, deviation = np.array([0.2, 0.4, -0.6]), np.array([1.0, 2.0, 3.0])
    x = (mean + deviation * np.random.default_rng(0).normal(size=(40 * 512, 3))).astype("float32")
    net = keras.Sequential([keras.Input((3,)), L.Dense(1, use_bias=False)])
    model = compiled(net, loss=lambda y_true, y_pred: y_pred, graph=True)
    callback, history = watched(model, x, np.zeros(len(x)), batch_size=512, decay=0.999)
    found = callback.of_network()
    # With n = 20,480 draws ||G||^2 errs by 2 sqrt(G Sigma G / n) = 0.028, tr(Sigma) by sqrt(2 tr(Sigma^2) / n) = 0.098;
    # four of each.
    np.testing.assert_allclose(found.squared_gradient, 0.56, atol=0.11)
    np.testing.assert_allclose(found.variance, 14.0, atol=0.4)
    assert 20 < found.noise_scale < 32
    assert history["noise_scale"] == [found.noise_scale]


def test_linear_regression():
    """y = x . w* + noise, x standard normal: G = w - w*, tr(Sigma) = (d + 1) ||G||^2 + d sigma^2."""
    rng, d, sigma = np.random.default_rng(0), 4, 2.0
    x = rng.normal(size=(40 * 512, d))
    true, start = rng.normal(size=(d, 1)), np.array([[1.0], [-1.0], [0.5], [0.0]])
    y = x @ true + sigma * rng.normal(size=(len(x), 1))
    net = keras.Sequential([keras.Input((d,)), L.Dense(1, use_bias=False)])
    net.set_weights([start])
    model = compiled(net, loss=lambda y_true, y_pred: ops.square(y_pred - y_true) / 2, graph=True)
    callback, _ = watched(model, x, y, batch_size=512, decay=0.999)
    squared = ((start - true) ** 2).sum()
    found = callback.of_network()
    # The estimates scatter by about 3 percent: four times that.
    np.testing.assert_allclose(found.squared_gradient, squared, rtol=0.12)
    np.testing.assert_allclose(found.noise_scale, d + 1 + d * sigma**2 / squared, rtol=0.12)


def test_the_estimate_does_not_depend_on_the_batch_size():
    net, (x, _) = network(), data(480)
    y = np.zeros(480, int)  # one class, so that the gradients agree
    found = []
    for batch_size in (4, 30, 240):
        callback, _ = watched(compiled(net, graph=batch_size == 4), x, y, batch_size=batch_size, decay=0.999)
        found.append((callback.of_network().squared_gradient, callback.of_network().variance))
    expected = np.sum([slow_estimates(g) for g in every_gradient(net, x, y).values()], axis=0)
    # Of batches of 4 the squared gradient scatters by 2 percent, and 120 updates are weighted from 0.89 to 1.
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), rtol=0.05)


def test_numerator_and_denominator_are_averaged_apart():
    net, (x, y) = network(), data(36)
    callback, _ = watched(compiled(net), x, y, batch_size=12, decay=0.75)
    parts = [every_gradient(net, x[i : i + 12], y[i : i + 12]) for i in (0, 12, 24)]
    for path, found in callback.of_tensors().items():
        gradient, trace = np.average([slow_estimates(p[path]) for p in parts], axis=0, weights=[0.75**2, 0.75, 1])
        np.testing.assert_allclose([found.squared_gradient, found.variance], [gradient, trace], 1e-4, 1e-5 * trace)


def test_a_sample_of_the_batch_is_measured():
    net, (x, y) = network(), data()
    callback, _ = watched(compiled(net, norm_examples=6), x, y)
    for path, gradients in every_gradient(net, x, y).items():
        squares, squared_mean = (gradients[:6] ** 2).sum(1).mean(), (gradients.mean(0) ** 2).sum()
        found = callback.of_tensors()[path]
        expected = estimates(squares, squared_mean, 24)
        np.testing.assert_allclose([found.squared_gradient, found.variance], expected, 2e-5, 2e-5 * squares)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: paper(lb.CLARS, 0.0),
        lambda: paper(lb.CLARS, 0.0, gradient_norms="replica"),
        lambda: paper(lb.LARS, 0.0),
        lambda: "adam",
    ],
)
def test_any_optimizer(optimizer):
    net, (x, y) = network(), data()
    expected = every_gradient(net, x, y)
    callback, _ = watched(compiled(net, optimizer()), x, y)
    assert_equals_slow(callback, expected)


@pytest.mark.parametrize("micro_batch_size", [long(None), 8])
def test_watching_changes_no_update(micro_batch_size):
    x, y = data()
    for optimizer in (lambda: paper(lb.CLARS, 1.0, gradient_norms="replica"), lambda: keras.optimizers.SGD(0.5)):
        models = [compiled(network(), optimizer(), micro_batch_size=micro_batch_size) for _ in range(2)]
        watched(models[0], x, y, batch_size=12, epochs=3)
        models[1].fit(x, y, batch_size=12, epochs=3, shuffle=False, verbose=0)
        for a, b in zip(models[0].weights, models[1].weights, strict=True):
            # The measured gradient is summed in another order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_replicas_estimate_each_from_its_share(two_replicas):
    net, (x, y) = network(), data(24)
    gradients = every_gradient(net, x, y)
    with two_replicas.scope():
        copy = network()
        model = lb.LargeBatchModel(copy)
        model.compile(keras.optimizers.SGD(**FROZEN), CROSS_ENTROPY, jit_compile=False)
    callback = GradientNoiseScale(decay=0.5)
    model.fit(x, y, batch_size=24, shuffle=False, epochs=3, callbacks=[callback], verbose=0)
    for found, (path, g) in zip(callback.of_tensors().values(), gradients.items(), strict=True):
        # MirroredStrategy gives each replica one half of the batch.
        expected = np.mean([slow_estimates(half) for half in np.split(g, 2)], axis=0)
        scale = 2e-5 * expected[1]
        np.testing.assert_allclose([found.squared_gradient, found.variance], expected, 2e-5, scale, err_msg=path)


def test_weight_regularizers_do_not_count():
    x, y = data()
    free, regular = network(), network(keras.regularizers.L2(0.3))
    for optimizer in (None, keras.optimizers.SGD(0.0, loss_scale_factor=64.0)):
        callback, _ = watched(compiled(regular, optimizer), x, y)
        assert_equals_slow(callback, {v.path: g for v, g in zip(
            regular.trainable_variables, every_gradient(free, x, y).values(), strict=True)})  # fmt: skip


def test_a_loss_scale_is_undone_and_an_overflow_left_out():
    keras.config.set_dtype_policy("mixed_float16")
    net = keras.Sequential([keras.Input((1,)), L.Dense(1, use_bias=False, kernel_initializer="ones")])
    x = np.array([[1.0], [3.0], [2.0], [6.0]], "float32")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=2.0**24)
    model = compiled(net, optimizer, loss=lambda y_true, y_pred: y_pred)
    callback, history = watched(model, x, np.zeros(4), epochs=20)
    assert float(optimizer.dynamic_scale) < 2.0**24
    # Gradients 1, 3, 2, 6: mean 3, variance 14 / 3.
    found = callback.of_network()
    np.testing.assert_allclose([found.squared_gradient, found.variance], [9 - 14 / 12, 14 / 3], rtol=1e-3)
    assert np.isnan(history["noise_scale"][0])  # nothing had been seen yet


def test_ragged_batches_and_batches_of_one():
    net, (x, y) = network(), data(13)
    callback, _ = watched(compiled(net), x, y, batch_size=4, decay=0.5)
    parts = [every_gradient(net, x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]  # the last example is alone
    for path, found in callback.of_tensors().items():
        gradient, trace = np.average([slow_estimates(p[path]) for p in parts], axis=0, weights=[0.25, 0.5, 1])
        np.testing.assert_allclose([found.squared_gradient, found.variance], [gradient, trace], 1e-4, 1e-5 * trace)
    callback, history = watched(compiled(net), x, y, batch_size=1)
    assert np.isnan(history["noise_scale"]).all() and np.isnan(callback.of_network().variance)


def test_a_variable_without_gradient_has_no_noise_scale():
    inputs = keras.Input((5,))
    hidden = L.Dense(4, name="used")(inputs)
    net = keras.Model(inputs, [L.Dense(3)(hidden), L.Dense(2, name="idle")(hidden)])
    model = lb.LargeBatchModel(net)
    model.compile("sgd", loss=[CROSS_ENTROPY, None], run_eagerly=not ON_JAX)
    x, y = data()
    callback = GradientNoiseScale()
    model.fit(x, [y, np.zeros((24, 2))], batch_size=24, callbacks=[callback], verbose=0)
    found = callback.of_tensors()
    assert np.isnan(found["idle/kernel"].noise_scale) and found["used/kernel"].noise_scale > 0
    assert np.isfinite(callback.of_network().variance)


def test_the_model_is_left_as_it_was_and_a_second_fit_goes_on():
    x, y = data()
    model = compiled()
    weights = [v.path for v in model.variables]
    callback = GradientNoiseScale(decay=0.5)
    for _ in range(2):
        model.fit(x, y, batch_size=12, shuffle=False, callbacks=[callback], verbose=0)
        assert model.noise_scale_averages is None and [v.path for v in model.variables] == weights
    once, _ = watched(compiled(), x, y, batch_size=12, epochs=2, decay=0.5)
    assert once.of_network() == callback.of_network()
    assert "noise_scale" not in model.fit(x, y, verbose=0).history


def test_steps_are_traced_once():
    x, y = data(30)
    model = compiled(graph=True)
    traces, step = [], model._update
    model._update = lambda *args: traces.append(1) or step(*args)
    watched(model, x, y, batch_size=12, epochs=3)
    # Keras traces once for the batch size it was given and once for any.
    assert len(traces) <= 2


def test_rows_of_every_tensor(tmp_path):
    x, y = data()
    model, path = compiled(optimizer=keras.optimizers.SGD(0.1)), tmp_path / "noise.csv"
    callback = GradientNoiseScale(path)
    model.fit(x, y, batch_size=12, epochs=2, callbacks=[callback], verbose=0)
    rows = read_noise_scales(path)
    assert [update for update, *_ in rows] == [2] * 4 + [4] * 4
    assert {name: found for update, name, found in rows if update == 4} == callback.of_tensors()
    model.fit(x, y, batch_size=12, epochs=1, callbacks=[callback], verbose=0)
    assert [update for update, *_ in read_noise_scales(path)] == [2] * 4 + [4] * 4 + [6] * 4
    with open(path, "a") as file:
        file.write("8,net/dense")
    assert len(read_noise_scales(path)) == 12


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    x, y = data()
    fit = {"batch_size": 12, "shuffle": False, "verbose": 0}
    straight = GradientNoiseScale(decay=0.5)
    compiled(optimizer=keras.optimizers.SGD(0.1)).fit(x, y, epochs=2, callbacks=[straight], **fit)
    first, callback = compiled(optimizer=keras.optimizers.SGD(0.1)), GradientNoiseScale(decay=0.5)
    callback.attach(first)
    first.fit(x, y, callbacks=[callback], **fit)
    save_checkpoint(tmp_path / "c.npz", first, 1)
    second, callback = compiled(network(seed=1), keras.optimizers.SGD(0.1)), GradientNoiseScale(decay=0.5)
    callback.attach(second)
    load_checkpoint(tmp_path / "c.npz", second)
    second.fit(x, y, callbacks=[callback], **fit)
    for found, expected in zip(callback.of_tensors().values(), straight.of_tensors().values(), strict=True):
        assert found == expected


def test_a_small_last_batch_counts_by_its_examples():
    """Gradients x with G = (0.2, ..), tr(Sigma) = 4 D: a last batch of 2 alone would move the estimate by half."""
    rng, d = np.random.default_rng(0), 50
    mean = 0.2 * rng.normal(size=d)
    x = (mean + 2 * rng.normal(size=(20 * 512 + 2, d))).astype("float32")
    net = keras.Sequential([keras.Input((d,)), L.Dense(1, use_bias=False)])
    model = compiled(net, loss=lambda y_true, y_pred: y_pred[:, 0], graph=True)
    _, history = watched(model, x, np.zeros((len(x), 1)), batch_size=512)
    # The estimate from 20 batches of 512 scatters by 2 percent.
    np.testing.assert_allclose(history["noise_scale"], 4 * d / np.sum(mean**2), rtol=0.06)


def test_an_interrupted_fit_ends_the_measuring():
    def stop(batch, logs):
        raise KeyboardInterrupt

    (x, y), model = data(), compiled()
    stopping = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, callbacks=[GradientNoiseScale(), stopping], verbose=0)
    assert model.noise_scale_averages is None
    attached = GradientNoiseScale()
    attached.attach(model)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, callbacks=[attached, stopping], verbose=0)
    assert model.noise_scale_averages is not None


def test_bad_arguments():
    x, y = data()
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
            GradientNoiseScale(decay=decay)
    plain = network()
    plain.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"got 'net': wrap it in tf_largebatch\.LargeBatchModel"):
        plain.fit(x, y, callbacks=[GradientNoiseScale()], verbose=0)
    with pytest.raises(RuntimeError, match="pass it to fit first"):
        GradientNoiseScale().of_network()


def test_a_subclassed_model_built_by_fit():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.head = L.Dense(3)

        def call(self, x):
            return self.head(x)

    x, y = data()
    _, history = watched(compiled(Net()), x, y)
    assert np.isfinite(history["noise_scale"]).all()


def test_models_whose_examples_have_several_gradients_are_refused():
    net = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(3)])
    model = lb.ConAdvModel(net, value_range=(-5.0, 5.0))
    model.compile("sgd", CROSS_ENTROPY, jit_compile=ON_JAX)
    x, y = np.zeros((8, 4, 4, 1), "float32"), np.zeros(8, int)
    with pytest.raises(ValueError, match="not available for ConAdvModel"):
        watched(model, x, y)
