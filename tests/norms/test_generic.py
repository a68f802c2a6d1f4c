"""The rule for any layer: exact where asked for, refused where examples are not independent."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import (
    CROSS_ENTROPY,
    ON_JAX,
    RTOL,
    assert_norms_close,
    norms_of,
    plain_gradients,
    randomize,
    run_traced,
    traced_without_sizes,
)
from keras import layers as L
from keras import ops
from paper_settings import paper
from selection import long_unless

import tf_largebatch as lb
from tf_largebatch.norms import (
    KERAS,
    brute_force_gradient_norms,
    check_supported,
    measure,
    per_example_gradient_norms,
    use_generic,
)

GENERIC = KERAS.allowing_generic()
BATCH = 5

pytestmark = [pytest.mark.each_value, pytest.mark.filterwarnings("ignore:.*was passed an input with a mask")]


class Gated(L.Layer):
    """Two variables, two outputs, one of them of another dtype, and one more argument."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x, mask=None, power=1):
        h = keras.ops.tanh(x @ self.kernel) ** power
        h = h if mask is None else keras.ops.where(mask[..., None], h, 0.0)
        return h * self.scale, keras.ops.sum(keras.ops.square(x @ self.kernel), axis=-1), x[:, 0, 0] > 0


class Own(L.Layer):
    """Reads the weights of layers inside it, and has one of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = L.Dense(4), L.LayerNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 4))
        self.shift = self.add_weight(shape=(4,), name="shift")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return self.norm(x @ (self.dense.kernel * self.dense.kernel) + self.shift) + self.dense(x)


class MinusMean(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        return self.scale * (x - keras.ops.mean(x, axis=0))


class WithLoss(MinusMean):
    def call(self, x):
        self.add_loss(keras.ops.sum(self.scale))
        return x * self.scale


@keras.saving.register_keras_serializable(package="test_generic")
class MyCell(L.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(2.0 * inputs, states)


def gated(x):
    h, squares, _ = Gated()(x, mask=x[..., 0] > 0, power=2)
    return keras.ops.concatenate([h, squares[..., None]], axis=-1)


def shared(x):
    layer = Own()
    return layer(layer(L.Dense(4)(x)))


LAYERS = {
    "several outputs": gated,
    "layers inside": lambda x: Own()(x),
    "shared": shared,
    "lstm of another cell": lambda x: L.RNN(MyCell(3))(x),
    "bidirectional": lambda x: L.Bidirectional(L.RNN(MyCell(3), return_sequences=True))(x),
}


def classifier(build):
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(build(inputs))))
    randomize(model)
    rng = np.random.default_rng(1)
    return model, rng.normal(size=(BATCH, 6, 3)).astype("float32"), rng.integers(0, 3, BATCH)


def one_example_at_a_time(model, x, y):
    norms = {v.path: [] for v in model.trainable_variables}
    for x_i, y_i in zip(x, y, strict=True):

        def loss_of_one(x_i=x_i, y_i=y_i):
            return CROSS_ENTROPY(y_i[None], model(x_i[None], training=True)), None

        for path, g in zip(norms, plain_gradients(model, loss_of_one)[1], strict=True):
            norms[path].append(np.linalg.norm(ops.convert_to_numpy(g)))
    return {path: np.stack(values) for path, values in norms.items()}


@pytest.mark.parametrize("layer", long_unless(LAYERS, ["several outputs"]))
def test_norms_agree_with_a_loop_over_batches_of_one(layer):
    model, x, y = classifier(LAYERS[layer])
    with pytest.raises(ValueError, match="use_generic"):
        per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    found = norms_of(model, x, y, registry=GENERIC)
    assert set(found) == {v.path for v in model.trainable_variables}
    assert_norms_close(found, one_example_at_a_time(model, x, y))


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 99])
def test_a_marked_layer_in_chunks(chunk_size):
    model, x, y = classifier(lambda x: L.Conv1D(4, 3, padding="same")(x))
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    assert use_generic(model.layers[1], chunk_size) is model.layers[1]
    assert KERAS.rule_for(model.layers[1]) is not KERAS.rule_for(L.Conv1D(4, 3))
    assert_norms_close(norms_of(model, x, y), expected)


@pytest.mark.parametrize("examples", [None, 3])
@pytest.mark.parametrize("layer", long_unless(["several outputs", "layers inside", "shared"], ["layers inside"]))
def test_within_a_traced_step_of_unknown_batch_size(layer, examples):
    model, x, y = classifier(LAYERS[layer])

    def step(x, y):
        output, measured = measure(
            model,
            lambda: model(x, training=True),
            lambda y_pred: CROSS_ENTROPY(y, y_pred),
            model.trainable_variables,
            ops.shape(x)[0],
            GENERIC,
            examples,
        )
        return output, measured.gradients, measured.squared_norms

    calls = [v for v in model.non_trainable_variables if "calls" in v.path]
    before = [float(v.numpy()) for v in calls]
    output, gradients, squares = traced_without_sizes(step, [None, 6, 3])(x, y)
    assert [float(v.numpy()) for v in calls] == [n + (2 if layer == "shared" else 1) for n in before]
    expected = one_example_at_a_time(model, x, y)

    def loss_and_output():
        plain = model(x, training=True)
        return CROSS_ENTROPY(y, plain), plain

    plain, plain_ones = plain_gradients(model, loss_and_output)
    np.testing.assert_allclose(ops.convert_to_numpy(output), ops.convert_to_numpy(plain), rtol=1e-5, atol=1e-5)
    for v, g, found, plain in zip(model.trainable_variables, gradients, squares, plain_ones, strict=True):
        g, plain, found = (ops.convert_to_numpy(t) for t in (g, plain, found))
        np.testing.assert_allclose(g, plain, rtol=RTOL, atol=1e-6, err_msg=v.path)
        wanted = expected[v.path][:examples] / BATCH
        np.testing.assert_allclose(np.sqrt(found), wanted, rtol=RTOL, atol=1e-6, err_msg=v.path)


@pytest.mark.parametrize(
    "layers", [[MinusMean()], [L.BatchNormalization()], [keras.Sequential([L.Dropout(0.5), L.Dense(3)])]]
)
def test_layers_whose_examples_are_not_independent_are_refused(layers):
    model, x, y = classifier(lambda x: layers[0](x))
    use_generic(layers[0])
    if ON_JAX:  # no program of JAX raises
        found = norms_of(model, x, y)
        inside = {v.path for v in layers[0].trainable_variables}
        assert {path for path, norms in found.items() if np.all(np.isnan(ops.convert_to_numpy(norms)))} == inside
    else:
        from tensorflow.errors import InvalidArgumentError

        with pytest.raises(InvalidArgumentError, match="couples examples or draws random numbers"):
            per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    if not isinstance(layers[0], MinusMean):  # nor do they do so in inference
        found = per_example_gradient_norms(model, x, y, CROSS_ENTROPY, training=False)
        assert_norms_close(found, brute_force_gradient_norms(model, x, y, CROSS_ENTROPY, training=False))


def test_where_assertions_are_left_out_such_layers_give_nan():
    model, x, y = classifier(lambda x: use_generic(MinusMean())(x))

    def step(x, y):
        _, measured = measure(
            model, lambda: model(x), lambda y_pred: CROSS_ENTROPY(y, y_pred), model.trainable_variables, BATCH, KERAS
        )
        return measured.gradient_norms().unpack()

    norms = dict(zip([v.path for v in model.trainable_variables], run_traced(step, x, y, by_xla=True), strict=True))
    for path, norm in norms.items():
        assert np.isnan(norm) == ("scale" in path), path


def test_a_loss_added_in_the_layer_is_refused():
    model, x, y = classifier(lambda x: WithLoss()(x))
    with pytest.raises(ValueError, match="adds a loss"):
        per_example_gradient_norms(model, x, y, CROSS_ENTROPY, registry=GENERIC)


def test_outputs_without_the_batch_axis_first_are_refused():
    class Mean(Gated):
        def call(self, x):
            return keras.ops.broadcast_to(keras.ops.mean(x @ self.kernel, axis=0), (6, 4)) * self.scale

    model, x, y = classifier(lambda x: x + L.Dense(3)(keras.ops.reshape(Mean()(x), (1, 6, 4))))
    with pytest.raises(ValueError, match="on axis 0"):
        per_example_gradient_norms(model, x, y, CROSS_ENTROPY, registry=GENERIC)


def test_exact_rules_are_preferred():
    model, _, _ = classifier(lambda x: Own()(L.Dense(3)(x)))
    rules = {type(layer).__name__: GENERIC.rule_for(layer) for layer in check_supported(model, GENERIC)}
    assert rules["Dense"] is KERAS.rule_for(L.Dense(1))
    assert rules["Own"].__name__ == "generic"
    assert len(rules) == 2  # what is inside Own needs no rule


def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model, x, y = classifier(lambda x: L.Dense(4, activation="tanh")(x))
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    use_generic(model.layers[1])
    assert_norms_close(norms_of(model, x, y), expected, rtol=2e-2)


@pytest.mark.parametrize("chunk_size", [0, 1.5])
def test_chunk_sizes_are_positive(chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be"):
        use_generic(L.Dense(3), chunk_size)


@pytest.mark.parametrize("jit_compile", long_unless([False, True], [ON_JAX]))
def test_a_smaller_last_batch(jit_compile):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 4)).astype("float32"), rng.integers(0, 3, 21)
    model = keras.Sequential([keras.Input((4,)), InMode(), keras.layers.Dense(3)])
    wrapper = lb.LargeBatchModel(model, allow_generic=True)
    wrapper.compile(paper(lb.CLARS, 0.0), CROSS_ENTROPY, jit_compile=jit_compile)
    wrapper.fit(x, y, batch_size=18, shuffle=False, verbose=0)
    found = wrapper.optimizer.gradient_norms()
    for path, norms in brute_force_gradient_norms(model, x[18:], y[18:], CROSS_ENTROPY).items():
        mean = np.mean(ops.convert_to_numpy(norms))
        np.testing.assert_allclose(ops.convert_to_numpy(found[path]), mean, rtol=1e-5, atol=1e-6, err_msg=path)


class Mode(keras.layers.Layer):
    def call(self, x, training=None):
        return 2.0 * x if training else x


class InMode(keras.layers.Layer):
    """Its own call takes no training mode; a layer inside it computes something else in training."""

    def __init__(self):
        super().__init__()
        self.mode = Mode()

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1], 3), initializer="ones", name="scale")

    def call(self, x):
        return self.mode(keras.ops.tanh(keras.ops.matmul(x, self.scale)))
