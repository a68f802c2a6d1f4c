"""Every layer rule against the slow reference, the true gradient and the layer's own output."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import (
    CROSS_ENTROPY,
    RTOL,
    assert_agrees_with_the_reference,
    assert_gradient_and_output_are_the_models_own,
    assert_norms_close,
    assert_sums_agree_whatever_the_sizes,
    batch,
    dtype_of,
    norms_of,
    norms_one_by_one,
    randomize,
)
from keras import layers as L
from keras import ops
from layer_cases import BATCH, CASES
from selection import long_unless

from tf_largebatch.norms import brute_force_gradient_norms, per_example_gradient_norms


def classifier(case: str) -> keras.Model:
    shape, make = CASES[case]
    return keras.Sequential([keras.Input(shape), *make(), L.Flatten(), L.Dense(3)])


# One of each kind of layer, and of each form in which a kernel's norms are computed.
QUICK = (
    *("dense over few positions, wide", "dense over many positions", "conv1d causal dilated", "conv2d same, stride 2"),
    *("conv2d uneven kernel and strides", "conv2d dilated", "conv2d pointwise, stride 2, same", "conv2d groups"),
    *("conv2d groups, one channel each", "conv2d wide, small map", "conv3d", "depthwise1d"),
    *("depthwise2d multiplier, stride", "separable1d", "separable2d", "batch norm", "batch norm, other axis"),
    *("layer norm, two axes", "group norm, other axis", "einsum heads", "einsum ellipsis", "einsum per position"),
)


@pytest.mark.parametrize("case", long_unless(CASES, QUICK))
def test_norms_agree_with_the_reference(case):
    model = classifier(case)
    randomize(model)
    x, y = batch(model, BATCH)
    assert_agrees_with_the_reference(model, x, y)


@pytest.mark.parametrize(
    "case",
    long_unless(
        [case for case in CASES if "batch norm" not in case],
        ["conv2d same, no bias", "layer norm"],
    ),
)
def test_norms_agree_with_a_loop_over_batches_of_one(case):
    model = classifier(case)
    x, y = batch(model, BATCH)
    found = per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    for path, norms in norms_one_by_one(model, x, y).items():
        np.testing.assert_allclose(found[path], norms, rtol=RTOL, atol=1e-6, err_msg=path)


@pytest.mark.each_value
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", long_unless(CASES, QUICK[::2]))
def test_contributions_add_up_to_the_gradient_and_the_output_is_the_layers_own(case, training):
    model = classifier(case)
    randomize(model)
    x, y = batch(model, BATCH)
    assert_gradient_and_output_are_the_models_own(model, x, y, training, traced=False)


@pytest.mark.each_value
@pytest.mark.parametrize(
    "loss",
    [
        CROSS_ENTROPY,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        keras.losses.MeanSquaredError(),
        "mse",
        lambda y_true, y_pred: ops.mean((ops.cast(y_true, "float32")[:, None] - y_pred) ** 2, -1),
    ],
    ids=["mean", "sum", "mse", "name", "function"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_sample_weights(loss, weighted):
    model = classifier("conv2d same, stride 2")
    x, y = batch(model, BATCH)
    y = y[:, None].astype("float32") if not isinstance(loss, keras.losses.Loss) or "mean_s" in loss.name else y
    y = y[:, 0] if callable(loss) and not isinstance(loss, keras.losses.Loss) else y
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0], "float32") if weighted else None
    found = assert_agrees_with_the_reference(model, x, y, loss=loss, sample_weight=weights)
    for i in range(BATCH):  # the example's own loss, times its weight
        one = None if weights is None else weights[i : i + 1]
        alone = per_example_gradient_norms(model, x[i : i + 1], y[i : i + 1], loss, sample_weight=one)
        for path, norms in found.items():
            np.testing.assert_allclose(norms[i], alone[path][0], rtol=RTOL, atol=1e-6)


def test_an_example_with_weight_zero_has_norm_zero():
    model = classifier("dense")
    x, y = batch(model, BATCH)
    weights = np.array([1, 0, 1, 1, 1], "float32")
    found = per_example_gradient_norms(model, x, y, CROSS_ENTROPY, sample_weight=weights)
    assert all(float(norms[1]) == 0.0 for norms in found.values())


def test_a_batch_of_one():
    model = classifier("conv2d valid")
    x, y = batch(model, 1)
    assert_agrees_with_the_reference(model, x, y)


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_shared_layer_adds_contributions_before_taking_the_norm(repeats):
    inputs = keras.Input((6, 6, 4))
    shared, scale = L.Conv2D(4, 3, padding="same", activation="tanh"), L.BatchNormalization()
    hidden = inputs
    for _ in range(repeats):
        hidden = scale(shared(hidden))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(hidden)))
    x, y = batch(model, BATCH)
    assert_agrees_with_the_reference(model, x, y)


def test_embedding_counts_repeated_ids_once():
    model = keras.Sequential([keras.Input((7,), dtype="int32"), L.Embedding(9, 4), L.Flatten(), L.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (BATCH, 7)), rng.integers(0, 3, BATCH)
    x[0] = 3
    assert_agrees_with_the_reference(model, x, y)


def test_a_shared_embedding():
    ids = keras.Input((4,), dtype="int32")
    table = L.Embedding(6, 3)
    hidden = L.concatenate([L.Flatten()(table(ids)), L.Flatten()(table(5 - ids))])
    model = keras.Model(ids, L.Dense(3)(hidden))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (BATCH, 4)), rng.integers(0, 3, BATCH)
    assert_agrees_with_the_reference(model, x, y)


def test_masked_batch_norm_and_layer_in_inference_mode():
    ids = keras.Input((6,), dtype="int32")
    hidden = L.BatchNormalization()(L.Embedding(8, 4, mask_zero=True)(ids))
    hidden = L.BatchNormalization()(hidden, training=False)
    model = keras.Model(ids, L.Dense(3)(L.GlobalAveragePooling1D()(hidden)))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (BATCH, 6)), rng.integers(0, 3, BATCH)
    assert_agrees_with_the_reference(model, x, y)


def test_nested_and_subclassed_models():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = L.Conv2D(4, 3, padding="same"), L.BatchNormalization()

        def call(self, x, training=None):
            return keras.ops.relu(self.norm(self.conv(x), training=training))

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Block(), Block()]
            self.head = keras.Sequential([L.Flatten(), L.Dense(3)])

        def call(self, x, training=None):
            for block in self.blocks:
                x = block(x, training=training)
            return self.head(x)

    model = Net()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 5, 5, 3)).astype("float32"), rng.integers(0, 3, BATCH)
    model(x)
    found = assert_agrees_with_the_reference(model, x, y)
    assert len(found) == len(model.trainable_variables)


@pytest.mark.parametrize("policy, rtol", [("mixed_float16", 2e-2), ("mixed_bfloat16", 8e-2)])
def test_half_precision(policy, rtol):
    # A few roundings of 2^-11 and 2^-8, amplified where contributions of different positions cancel.
    keras.config.set_dtype_policy(policy)
    model = classifier("batch norm")
    x, y = batch(model, BATCH)
    found = norms_of(model, x, y)
    assert all(dtype_of(norms) == "float32" for norms in found.values())
    expected = brute_force_gradient_norms(model, x, y, CROSS_ENTROPY)
    bias = next(v.path for v in model.trainable_variables if "conv2d" in v.path and "bias" in v.path)
    for norms in (found, expected):
        del norms[bias]  # its contributions cancel, up to rounding
    assert_norms_close(found, expected, rtol)


def test_the_model_is_left_as_it_was():
    model = keras.Sequential(
        [keras.Input((5,)), L.Dense(4), L.BatchNormalization(), L.Dropout(0.5, seed=1), L.Dense(3)]
    )
    x, y = batch(model, BATCH)
    before = [v.numpy() for v in model.variables]
    attributes = [set(vars(layer)) for layer in model.layers]
    per_example_gradient_norms(model, x, y, CROSS_ENTROPY)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    assert attributes == [set(vars(layer)) for layer in model.layers]


def test_sizes_unknown_when_traced():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            L.Conv2D(4, 3, strides=2, padding="same"),
            L.BatchNormalization(),
            L.GlobalAveragePooling2D(),
            L.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 7, 6, 3)).astype("float32"), rng.integers(0, 3, BATCH)

    assert_sums_agree_whatever_the_sizes(model, (None, None, None, 3), x, y, x[:3, 1:], y[:3])
