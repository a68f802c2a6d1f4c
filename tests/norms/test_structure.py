"""The batch axis is found by structure: no size passes by chance, and XLA changes nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import CROSS_ENTROPY, ON_JAX, norms_of, norms_one_by_one, tensorflow_only
from keras import layers as L
from paper_settings import paper
from selection import long_unless

import tf_largebatch as lb
from tf_largebatch.norms import brute_force_gradient_norms, per_example_gradient_norms

pytestmark = pytest.mark.each_value

rng = np.random.default_rng(0)


class TimeMajor(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = L.Dense(4), L.Dense(2)

    def call(self, x):
        steps_first = self.hidden(keras.ops.transpose(x, [1, 0, 2]))
        return self.out(keras.ops.transpose(steps_first, [1, 0, 2]))


class TwoViews(keras.Model):
    def __init__(self):
        super().__init__()
        self.net = L.Dense(4)

    def call(self, x):
        a, b = keras.ops.split(self.net(keras.ops.concatenate([x, -x], 0)), 2)
        return a - b


def test_as_many_steps_as_examples_do_not_make_a_batch_axis():
    model, x = TimeMajor(), rng.normal(size=(6, 6, 3)).astype("float32")
    model(x)
    with pytest.raises(ValueError, match=r"dense.* has 6 rows for all examples"):
        per_example_gradient_norms(model, x, x[..., :2], "mse")
    with pytest.raises(ValueError, match=r"has \[6\] rows for 6 examples, and \[6\] for 7"):
        brute_force_gradient_norms(model, x, x[..., :2], "mse")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_two_views_on_the_batch_axis_are_refused_before_the_first_step(jit_compile):
    model, x = TwoViews(), rng.normal(size=(10, 8)).astype("float32")
    model(x)
    before = [v.numpy() for v in model.variables]
    wrapper = lb.LargeBatchModel(model)
    wrapper.compile(paper(lb.CLARS, 0.1), "mse", jit_compile=jit_compile)
    with pytest.raises(ValueError, match="has 2 rows for each example"):
        wrapper.fit(x, x[:, :4], batch_size=4, verbose=0)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_the_check_leaves_no_trace():
    keras.utils.set_random_seed(0)
    layers = [L.Dense(5), L.BatchNormalization(), L.Dropout(0.5, seed=1), L.ActivityRegularization(0.1), L.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    x, y = rng.normal(size=(6, 4)).astype("float32"), rng.integers(0, 3, 6)
    found = per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    for path, norms in expected.items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-5, atol=1e-6)
    random_state = np.random.get_state()[1].copy()
    per_example_gradient_norms(model, x[:5], y[:5], CROSS_ENTROPY)
    np.testing.assert_array_equal(np.random.get_state()[1], random_state)
    assert len(model.losses) <= 1  # on JAX none: the pass has a scope of its own


@tensorflow_only  # JAX traces every model
def test_a_model_that_cannot_be_traced_is_checked_on_a_few_examples():
    class Untraceable(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = L.Dense(4), L.Dense(3)

        def call(self, x):
            h = self.hidden(x)
            return self.out(h if float(keras.ops.sum(h)) > -1e9 else -h)

    model, x, y = Untraceable(), rng.normal(size=(6, 4)).astype("float32"), rng.integers(0, 3, 6)
    model(x)
    found = per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    for path, norms in brute_force_gradient_norms(model, x, y, CROSS_ENTROPY).items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-5, atol=1e-6)


def test_a_model_that_splits_its_batch_and_one_with_states_of_a_fixed_batch():
    class Ghost(L.Layer):
        def call(self, x):
            return keras.ops.reshape(keras.ops.reshape(x, (4, -1, x.shape[-1])), (-1, x.shape[-1]))

    x, y = rng.normal(size=(8, 5, 4)).astype("float32"), rng.integers(0, 3, 8)
    inputs = keras.Input(batch_shape=(8, 5, 4))
    for hidden in (Ghost()(L.Flatten()(inputs)), L.LSTM(4, stateful=True)(inputs)):
        model = keras.Model(inputs, L.Dense(3)(hidden))
        assert len(per_example_gradient_norms(model, x, y, CROSS_ENTROPY)) == len(model.trainable_variables)


# Tables that are the same for all examples.


class TokensAndPositions(L.Layer):
    def __init__(self, use):
        super().__init__()
        self.use = use
        self.tokens, self.positions = L.Embedding(20, 6), L.Embedding(8, 6)

    def call(self, ids):
        ops, tokens, numbers = keras.ops, self.tokens(ids), keras.ops.arange(ids.shape[-1])
        return {
            "added": lambda: tokens + self.positions(numbers),
            "ids of one row": lambda: tokens + self.positions(numbers[None]),
            "expanded": lambda: tokens - ops.expand_dims(self.positions(numbers), 0),
            "broadcast": lambda: tokens + ops.broadcast_to(self.positions(numbers), ops.shape(tokens)),
            "scaled": lambda: tokens * (1.0 + 3.0 * self.positions(numbers)),
            "transposed": lambda: tokens + ops.transpose(ops.transpose(self.positions(numbers))),
            "averaged": lambda: tokens + ops.mean(self.positions(numbers), axis=0),
        }[self.use]()


def text_model(use):
    keras.utils.set_random_seed(0)
    ids = keras.Input((8,), dtype="int32")
    hidden = L.Dense(5, activation="tanh")(TokensAndPositions(use)(ids))
    return keras.Model(ids, L.Dense(3)(L.GlobalAveragePooling1D()(hidden)))


IDS, LABELS = rng.integers(0, 20, (8, 8)), rng.integers(0, 3, 8)


@pytest.mark.parametrize(
    "use",
    long_unless(["added", "ids of one row", "expanded", "broadcast", "scaled", "transposed"], ["added", "expanded"]),
)
@pytest.mark.parametrize("examples", [8, 1])
def test_a_table_of_as_many_positions_as_examples_and_a_batch_of_one(use, examples):
    model, ids, labels = text_model(use), IDS[:examples], LABELS[:examples]
    found = norms_of(model, ids, labels)
    for path, norms in norms_one_by_one(model, ids, labels).items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-4, atol=1e-6, err_msg=path)


class RowsAndColumns(L.Layer):
    """Adds a table of rows and a table of columns, combined first, to images [B, 3, 2, 4]."""

    def __init__(self, use):
        super().__init__()
        self.use = use
        self.rows, self.columns = L.Embedding(3, 4), L.Embedding(2, 4)

    def call(self, x):
        ops = keras.ops
        rows, columns = self.rows(ops.arange(3)), self.columns(ops.arange(2))
        return {
            "sum": lambda: x + (rows[:, None] + columns[None]),
            "product": lambda: x * (rows[:, None] * columns[None]),
            "expanded": lambda: x - ops.expand_dims(columns + ops.expand_dims(rows, 1), 0),
            "tiled": lambda: x + (ops.tile(rows[:, None], (1, 2, 1)) + ops.broadcast_to(columns, (3, 2, 4))),
            "time-major": lambda: ops.transpose(ops.transpose(x, (1, 0, 2, 3)) + rows[:, None, None], (1, 0, 2, 3)),
        }[self.use]()


def image_model(use):
    keras.utils.set_random_seed(0)
    images = keras.Input((3, 2, 4))
    hidden = L.Dense(3, activation="tanh")(RowsAndColumns(use)(images))
    return keras.Model(images, L.Dense(3)(L.Flatten()(hidden)))


@pytest.mark.parametrize("use", long_unless(["sum", "product", "expanded", "tiled"], ["product"]))
def test_tables_that_are_broadcast_against_each_other(use):
    model = image_model(use)
    images = rng.normal(size=(5, 3, 2, 4)).astype("float32")
    for examples in (5, 3, 1):  # 3: as many as rows
        x, y = images[:examples], LABELS[:examples]
        found = norms_of(model, x, y)
        for path, norms in norms_one_by_one(model, x, y).items():
            np.testing.assert_allclose(found[path], norms, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_table_that_meets_the_batch_on_another_axis_is_refused():
    images = rng.normal(size=(3, 3, 2, 4)).astype("float32")
    for examples in (3, 1):
        with pytest.raises(ValueError, match=r"embedding.* are the same for all examples"):
            per_example_gradient_norms(image_model("time-major"), images[:examples], LABELS[:examples], CROSS_ENTROPY)


def test_more_than_a_sum_or_product_with_the_batch_is_refused_or_right():
    """On JAX what is computed of a table alone, here a mean, is no obstacle."""
    model = text_model("averaged")
    if not ON_JAX:
        with pytest.raises(ValueError, match=r"embeddings are the same for all examples.*use_generic"):
            per_example_gradient_norms(model, IDS, LABELS, CROSS_ENTROPY)
        return
    found = norms_of(model, IDS, LABELS)
    for path, norms in norms_one_by_one(model, IDS, LABELS).items():
        np.testing.assert_allclose(found[path], norms, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.long
def test_positions_in_fit_with_a_smaller_last_batch():
    model = text_model("added")
    wrapper = lb.LargeBatchModel(model)
    wrapper.compile(paper(lb.CLARS, 0.0), CROSS_ENTROPY, jit_compile=False)
    wrapper.fit(
        np.concatenate([IDS, IDS[:3]]), np.concatenate([LABELS, LABELS[:3]]), batch_size=8, shuffle=False, verbose=0
    )
    found = wrapper.optimizer.gradient_norms()
    for path, norms in norms_one_by_one(model, IDS[:3], LABELS[:3]).items():
        np.testing.assert_allclose(found[path], np.mean(norms), rtol=1e-4, atol=1e-6, err_msg=path)
