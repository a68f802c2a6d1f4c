"""What models and training loops do besides plain layers: drop, weight, mask, have several outputs and odd batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, ON_JAX, RTOL, assert_norms_close, norms_of, tensorflow_only
from keras import layers as L
from keras import ops
from keras.src.applications.convnext import StochasticDepth
from keras.src.backend.common import global_state
from paper_settings import paper
from selection import long

import tf_largebatch as lb
from tf_largebatch.norms import brute_force_gradient_norms

BATCH = 8


def images(size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 6, 6, 3)).astype("float32"), rng.integers(0, 3, size)


def fitted(net, x, y, loss=CROSS_ENTROPY, norm_examples=None, fit=None, **compile_arguments):
    """The mean norms that CLARS was handed in the last step, without an update: `{path: s_k}`."""
    model = lb.LargeBatchModel(net, norm_examples=norm_examples)
    optimizer = paper(lb.CLARS, 0.0, gradient_norms="per_example")
    # On JAX each operation by itself takes long to compile.
    model.compile(optimizer, loss, run_eagerly=not ON_JAX, **compile_arguments)
    model.fit(x, y, shuffle=False, verbose=0, **{"batch_size": BATCH, **(fit or {})})
    return optimizer.gradient_norms()


def assert_means_close(found, norms):
    for path, expected in norms.items():
        np.testing.assert_allclose(found[path], np.mean(expected), rtol=RTOL, atol=1e-6, err_msg=path)


# Layers that drop.


@pytest.mark.parametrize(
    "drop",
    [
        lambda: L.Dropout(0.5, seed=1),
        long(lambda: L.SpatialDropout2D(0.5, seed=1)),
        long(lambda: L.AlphaDropout(0.3, seed=1)),
        long(lambda: L.GaussianDropout(0.4, seed=1)),
        long(lambda: L.GaussianNoise(0.5, seed=1)),
    ],
    ids=["dropout", "spatial", "alpha", "gaussian", "noise"],
)
def test_dropout(drop):
    hidden = [L.Conv2D(5, 3), drop(), L.Conv2D(4, 3, activation="relu"), drop()]
    net = keras.Sequential([keras.Input((6, 6, 3)), *hidden, L.Flatten(), L.Dense(3)])
    x, y = images()
    found = norms_of(net, x, y)
    assert_norms_close(found, brute_force_gradient_norms(net, x, y, CROSS_ENTROPY))
    # Drawn in training only, and the draws are given back.
    again = norms_of(net, x, y)
    quiet = norms_of(net, x, y, CROSS_ENTROPY, training=False)
    for path, norms in found.items():
        np.testing.assert_array_equal(norms, again[path])
        assert not np.allclose(norms, quiet[path], rtol=1e-2)


@pytest.mark.each_value
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    "drop",
    [
        lambda: L.Dropout(0.5, noise_shape=(None, 1, 1, 1), seed=1),
        # Keras on JAX trains no layer that draws from a generator which is not its own.
        pytest.param(lambda: StochasticDepth(0.5), marks=tensorflow_only),
    ],
    ids=["as EfficientNet", "as ConvNeXt"],
)
def test_stochastic_depth(drop, batch_norm):
    """An example whose residual branch is dropped has no gradient in it, whatever the others have."""
    inputs = keras.Input((6, 6, 3))
    branch = L.Conv2D(3, 3, padding="same", name="branch")(inputs)
    branch = L.BatchNormalization()(branch) if batch_norm else L.Activation("tanh")(branch)
    branch = drop()(branch)
    net = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.ReLU()(L.add([inputs, branch])))))
    x, y = images()

    def drawn_alike(function):
        # ConvNeXt's layer draws from Keras's own generator, which the seed alone starts anew only from Keras 3.13 on.
        global_state.set_global_attribute("global_seed_generator", None)
        keras.utils.set_random_seed(3)
        return function()

    found = drawn_alike(lambda: norms_of(net, x, y))
    assert_norms_close(found, drawn_alike(lambda: brute_force_gradient_norms(net, x, y, CROSS_ENTROPY)))
    dropped = drawn_alike(lambda: keras.Model(inputs, branch)(x, training=True))
    kept = ops.convert_to_numpy(dropped).reshape(BATCH, -1).any(1)
    assert 0 < kept.sum() < BATCH
    # Batch norm's statistics tie the dropped examples' convolution to the loss; its own scale and offset come after.
    tensors = ["gamma", "beta"] if batch_norm else ["branch/kernel", "branch/bias"]
    for path, norms in found.items():
        if path.endswith(tuple(tensors)):
            np.testing.assert_array_equal(ops.convert_to_numpy(norms) > 0, kept, err_msg=path)


# Weights of examples and classes.


@pytest.mark.parametrize("kind", [long("sample"), "class"])
def test_weights_in_fit(kind):
    net = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)])
    x, y = images()
    if kind == "sample":
        weights = np.array([0.0, 0.5, 2.0, 1.0, 3.0, 0.1, 1.0, 1.0], "float32")
        fit = {"sample_weight": weights}
    else:
        fit = {"class_weight": {0: 1.0, 1: 3.0, 2: 0.0}}
        weights = np.array([1.0, 3.0, 0.0], "float32")[y]
    expected = brute_force_gradient_norms(net, x, y, CROSS_ENTROPY, sample_weight=weights)
    assert_means_close(fitted(net, x, y, fit=fit), expected)


# Masked sequences.


def tagger():
    ids = keras.Input((5,), dtype="int32")
    hidden = L.LSTM(4, return_sequences=True)(L.Embedding(9, 6, mask_zero=True)(ids))
    return keras.Model(ids, L.Dense(3)(hidden))


def sentences():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 9, (BATCH, 5)), rng.integers(0, 3, (BATCH, 5))
    for i, length in enumerate([5, 4, 3, 2, 1, 5, 5, 3]):
        x[i, length:] = 0
    return x, y


def test_masked_sequences_with_a_loss_at_every_step():
    net, (x, y) = tagger(), sentences()
    found = norms_of(net, x, y)
    expected = brute_force_gradient_norms(net, x, y, CROSS_ENTROPY)
    assert_norms_close(found, expected)
    assert_means_close(fitted(net, x, y), expected)
    # What is said behind the mask does not count.
    changed = np.where(x == 0, (y + 1) % 3, y)
    for path, norms in norms_of(net, x, changed, CROSS_ENTROPY).items():
        np.testing.assert_array_equal(norms, found[path])


@pytest.mark.long
def test_masked_sequences_weighted_step_by_step():
    net, (x, y) = tagger(), sentences()
    weights = np.random.default_rng(1).uniform(0, 2, (BATCH, 5)).astype("float32")
    found = norms_of(net, x, y, CROSS_ENTROPY, sample_weight=weights)
    assert_norms_close(found, brute_force_gradient_norms(net, x, y, CROSS_ENTROPY, sample_weight=weights))


@pytest.mark.long
def test_padding_is_what_a_shorter_sequence_gives():
    ids = keras.Input((None,), dtype="int32")
    hidden = L.Bidirectional(L.GRU(4))(L.Embedding(9, 6, mask_zero=True)(ids))
    net = keras.Model(ids, L.Dense(3)(hidden))
    x, y = sentences()
    found = norms_of(net, x, y[:, 0], CROSS_ENTROPY)
    for i, length in enumerate((x > 0).sum(1)):
        alone = norms_of(net, x[i : i + 1, :length], y[i : i + 1, 0], CROSS_ENTROPY)
        for path, norms in found.items():
            np.testing.assert_allclose(norms[i], alone[path][0], rtol=RTOL, atol=1e-6, err_msg=path)


# Several outputs and losses.


def test_several_outputs_and_losses():
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((4,), name="b")
    hidden = L.concatenate([L.Flatten()(L.Conv2D(3, 3, activation="relu")(a)), L.Dense(5, activation="tanh")(b)])
    shared = L.Dense(6, activation="relu")(hidden)
    outputs = {"class": L.Dense(3, name="class")(shared), "value": L.Dense(1, name="value")(shared)}
    outputs["unused"] = L.Dense(2, name="unused")(hidden)
    net = keras.Model({"a": a, "b": b}, outputs)
    rng = np.random.default_rng(0)
    x = {"a": images()[0], "b": rng.normal(size=(BATCH, 4)).astype("float32")}
    y = {"class": images()[1], "value": rng.normal(size=(BATCH, 1)).astype("float32")}

    def both(y_true, y_pred):
        cross_entropy = keras.losses.sparse_categorical_crossentropy(y_true["class"], y_pred["class"], from_logits=True)
        return 0.7 * cross_entropy + 2.0 * ops.mean((y_true["value"] - y_pred["value"]) ** 2, -1)

    expected = brute_force_gradient_norms(net, x, y, both)
    assert_norms_close(norms_of(net, x, y, both), expected)
    assert not any("unused" in path for path in expected)
    losses = {"class": CROSS_ENTROPY, "value": "mse", "unused": None}
    y["unused"] = np.zeros((BATCH, 2), "float32")
    found = fitted(net, x, y, losses, loss_weights={"class": 0.7, "value": 2.0, "unused": 1.0})
    assert_means_close(found, expected)


@pytest.mark.long
def test_each_outputs_own_weights():
    inputs = keras.Input((6, 6, 3))
    hidden = L.Flatten()(L.Conv2D(3, 3, activation="relu")(inputs))
    net = keras.Model(inputs, [L.Dense(3, name="one")(hidden), L.Dense(3, name="two")(hidden)])
    x, y = images()
    weights = np.random.default_rng(1).uniform(0, 2, (2, BATCH)).astype("float32")

    def both(y_true, y_pred):
        parts = [keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True) for p in y_pred]
        return weights[0] * parts[0] + weights[1] * parts[1]

    found = fitted(net, x, [y, y], [CROSS_ENTROPY, CROSS_ENTROPY], fit={"sample_weight": list(weights)})
    assert_means_close(found, brute_force_gradient_norms(net, x, y, both))


# Regularization.


def test_weight_and_activity_regularizers():
    """Those of weights belong to no example; those of activities belong to the examples."""

    def network(**kwargs):
        keras.utils.set_random_seed(0)
        layers = [L.Conv2D(4, 3, **kwargs, name="conv"), L.Flatten(), L.Dense(3, name="head")]
        return keras.Sequential([keras.Input((6, 6, 3)), *layers], name="net")

    x, y = images()
    plain = brute_force_gradient_norms(network(), x, y, CROSS_ENTROPY)
    weights = network(kernel_regularizer="l2", bias_regularizer="l1")
    assert_means_close(fitted(weights, x, y), plain)
    assert_norms_close(norms_of(weights, x, y, CROSS_ENTROPY), plain)

    free = network()
    outputs = keras.Model(free.inputs, [free.outputs[0], free.layers[0].output])

    def with_activity(y_true, y_pred):
        activity = ops.sum(ops.square(y_pred[1]), axis=(1, 2, 3))
        cross_entropy = keras.losses.sparse_categorical_crossentropy(y_true, y_pred[0], from_logits=True)
        return cross_entropy + BATCH * share * activity

    # Keras divides activity regularizers by the batch size, as it does losses, from 3.13 on.
    regularized = network(activity_regularizer=keras.regularizers.L2(0.3))
    regularized(x)
    share = regularized.losses[0] / ops.sum(ops.square(free.layers[0](x)))
    expected = brute_force_gradient_norms(outputs, x, y, with_activity)
    assert_means_close(fitted(regularized, x, y), expected)


# Odd batches.


@pytest.mark.parametrize("norm_examples", [long(None), 3, long(6)])
def test_a_ragged_last_batch(norm_examples):
    net = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3)])
    x, y = images(BATCH + 5)
    expected = brute_force_gradient_norms(net, x[BATCH:], y[BATCH:], CROSS_ENTROPY)
    found = fitted(net, x, y, norm_examples=norm_examples)
    # Six examples are asked for where only five are left.
    assert_means_close(found, {path: norms[:norm_examples] for path, norms in expected.items()})


def test_batches_of_one():
    net = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3), L.LayerNormalization(), L.Flatten(), L.Dense(3)])
    x, y = images(3)
    expected = brute_force_gradient_norms(net, x[2:], y[2:], CROSS_ENTROPY)
    assert_means_close(fitted(net, x, y, fit={"batch_size": 1}), expected)


# Compiled steps.


def text_and_image_model():
    """One of many kinds of layers, without random numbers."""
    image, ids = keras.Input((6, 6, 3), name="image"), keras.Input((5,), dtype="int32", name="ids")
    x = L.PReLU(shared_axes=[1, 2])(L.BatchNormalization()(L.Conv2DTranspose(4, 3, strides=2)(image)))
    x = L.GroupNormalization(2)(L.DepthwiseConv2D(3, strides=2)(x))
    words = L.GRU(6, return_sequences=True)(L.Embedding(9, 6, mask_zero=True)(ids))
    words = words + L.MultiHeadAttention(2, 3)(words, words)
    words = L.GlobalAveragePooling1D()(L.LayerNormalization()(words))
    hidden = L.concatenate([L.GlobalAveragePooling2D()(x), words])
    return keras.Model({"image": image, "ids": ids}, L.Dense(3)(hidden))


def batches(inputs, y):
    """Whole batches, of a size that XLA knows on TensorFlow before they are drawn."""
    if ON_JAX:
        parts = range(0, len(y), BATCH)
        return [({name: t[i : i + BATCH] for name, t in inputs.items()}, y[i : i + BATCH]) for i in parts]
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((inputs, y)).batch(BATCH, drop_remainder=True)


@pytest.mark.long
def test_compiled_by_xla_it_agrees_and_no_step_is_traced_again():
    net, (ids, _) = text_and_image_model(), sentences()
    x, y = images(4 * BATCH)
    inputs = {"image": x, "ids": np.tile(ids, (4, 1))}
    expected = brute_force_gradient_norms(
        net, {name: t[-BATCH:] for name, t in inputs.items()}, y[-BATCH:], CROSS_ENTROPY
    )
    model = lb.LargeBatchModel(net)
    model.compile(paper(lb.CLARS, 0.0), CROSS_ENTROPY, jit_compile=True)
    traces, step = [], model._update
    model._update = lambda *args: traces.append(1) or step(*args)
    # A generator on JAX, which needs no type of data that knows its sizes.

    def fit(data):
        model.fit((batch for batch in data) if ON_JAX else data, verbose=0)

    data = batches(inputs, y)
    fit(data[:1] if ON_JAX else data.take(1))
    assert len(traces) <= 2  # tf.function traces twice where the first time made variables
    traces.clear()
    fit(data)
    fit(data)
    assert not traces
    assert_means_close(model.optimizer.gradient_norms(), expected)
