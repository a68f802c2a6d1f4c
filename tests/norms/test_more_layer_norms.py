"""Recurrent, transposed, element-wise, attention and time-distributed layers: as in test_layer_norms.py."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from comparing import (
    CROSS_ENTROPY,
    ON_JAX,
    assert_agrees_with_the_reference,
    assert_gradient_and_output_are_the_models_own,
    assert_norms_close,
    assert_sums_agree_whatever_the_sizes,
    batch,
    norms_of,
    plain_gradients,
    randomize,
    sums_of_a_traced_step,
    tensorflow_only,
)
from keras import layers as L
from keras import ops
from more_layer_cases import BATCH, CASES, RANDOM_CASES
from selection import long_unless

from tf_largebatch.norms import brute_force_gradient_norms, per_example_gradient_norms

pytestmark = pytest.mark.filterwarnings("ignore:.*was passed an input with a mask")


def classifier(case):
    shape, make = {**CASES, **RANDOM_CASES}[case]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(make()(inputs))))
    randomize(model)
    return model


def one_example_at_a_time(model, x, y):
    """Norms of the gradients of the batch's loss with every weight zero but one: where examples are independent."""
    norms = {v.path: [] for v in model.trainable_variables}
    state = [v.numpy() for v in model.non_trainable_variables]
    for i in range(len(x)):
        for v, value in zip(model.non_trainable_variables, state, strict=True):
            v.assign(value)  # the same random numbers again

        weights = np.eye(len(x), dtype="float32")[i]

        def only_this_one(weights=weights):
            return CROSS_ENTROPY(y, model(x, training=True), sample_weight=weights), None

        _, gradients = plain_gradients(model, only_this_one)
        for v, g in zip(model.trainable_variables, gradients, strict=True):
            norms[v.path].append(len(x) * np.linalg.norm(ops.convert_to_numpy(g)))
    for v, value in zip(model.non_trainable_variables, state, strict=True):
        v.assign(value)
    return {path: np.stack(values) for path, values in norms.items()}


# Of each kind of layer the cases with the most of its arguments; the others are measured by the same code. Recurrent
# layers take longest.
QUICK = (
    *("conv2d transpose, stride 2, same", "prelu, shared axes", "rms norm, two axes", "spectral norm of conv", "stft"),
    *("lstm, initial state, all states", "simple rnn", "gru, reset before, masked", "conv lstm 2d"),
    *("additive attention", "time distributed conv and batch norm", "attention, concatenated and scaled"),
    *("heads, causal, no bias", "grouped heads, causal", "gru, reset before, both dropouts", "heads, dropout"),
)
MASKED_ON_IMAGES = "conv lstm 2d, masked"  # which Keras computes on TensorFlow only


def in_time(cases, quick=QUICK):
    """All but some of the cases are long ones."""
    cases = [case for case in cases if not (ON_JAX and case == MASKED_ON_IMAGES)]
    return long_unless(cases, [case for case in quick if case in cases])


@pytest.mark.parametrize("case", in_time(CASES))
def test_norms_agree_with_the_reference(case):
    model = classifier(case)
    x, y = batch(model, BATCH)
    assert_agrees_with_the_reference(model, x, y)


@pytest.mark.parametrize("case", in_time(RANDOM_CASES))
def test_norms_of_layers_with_dropout(case):
    model = classifier(case)
    x, y = batch(model, BATCH)
    found = norms_of(model, x, y)
    assert_norms_close(found, one_example_at_a_time(model, x, y))


@pytest.mark.each_value
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", in_time([*CASES, *RANDOM_CASES], QUICK[::2]))
def test_contributions_add_up_to_the_gradient_and_the_output_is_the_layers_own(case, training):
    model = classifier(case)
    x, y = batch(model, BATCH)
    assert_gradient_and_output_are_the_models_own(model, x, y, training, traced=training)


SEQUENCE_LAYERS = {
    "lstm": lambda: L.LSTM(4),
    "gru, reset before": lambda: L.GRU(4, reset_after=False),
    "bidirectional": lambda: L.Bidirectional(L.GRU(4)),
    "stacked": lambda: L.RNN([L.LSTMCell(4), L.SimpleRNNCell(3)]),
    "time distributed dense": lambda: keras.Sequential([L.TimeDistributed(L.Dense(4)), L.GlobalAveragePooling1D()]),
    "time distributed model": lambda: keras.Sequential(
        [
            L.TimeDistributed(keras.Sequential([L.Dense(4, activation="relu"), L.LayerNormalization()])),
            L.GlobalAveragePooling1D(),
        ]
    ),
}


@pytest.mark.parametrize("layer", long_unless(SEQUENCE_LAYERS, ["time distributed model"]))
def test_batch_and_length_unknown_when_traced(layer):
    model = keras.Sequential([keras.Input((None, 3)), SEQUENCE_LAYERS[layer](), L.Dense(3)])
    randomize(model)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 6, 3)).astype("float32"), rng.integers(0, 3, BATCH)
    assert_sums_agree_whatever_the_sizes(model, [None, None, 3], x, y, x[:3, :4], y[:3])


@pytest.mark.long
def test_time_distributed_within_time_distributed_over_unknown_lengths():
    inner = L.TimeDistributed(keras.Sequential([L.Dense(4, activation="tanh"), L.RMSNormalization()]))
    model = keras.Sequential(
        [keras.Input((None, None, 3)), L.TimeDistributed(inner), L.GlobalMaxPooling2D(), L.Dense(3)]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 3, 2, 3)).astype("float32"), rng.integers(0, 3, BATCH)
    assert_sums_agree_whatever_the_sizes(model, [None, None, None, 3], x, y, x[:3, :2], y[:3])


@tensorflow_only
def test_time_distributed_batch_norm_over_an_unknown_length_is_refused():
    inner = keras.Sequential([L.Dense(4), L.BatchNormalization()])
    model = keras.Sequential([keras.Input((None, 3)), L.TimeDistributed(inner), L.GlobalAveragePooling1D(), L.Dense(3)])
    with pytest.raises(ValueError, match=r"BatchNormalization\) over a number of time steps unknown"):
        sums_of_a_traced_step(model, [None, None, 3])(np.ones((4, 5, 3)), np.zeros(4, "int64"))


def test_stateful_layers_go_on_where_the_last_batch_ended():
    inputs = keras.Input(batch_shape=(BATCH, 5, 3))
    layer = L.GRU(4, stateful=True)
    model = keras.Model(inputs, L.Dense(3)(layer(inputs)))
    x, y = batch(model, BATCH)
    model(x)
    state = layer.states[0].numpy()
    assert np.any(state)
    norms = []
    for function in (brute_force_gradient_norms, per_example_gradient_norms):
        norms.append(function(model, x, y, CROSS_ENTROPY))
        layer.states[0].assign(state)
    assert_norms_close(*norms)


def test_a_shared_recurrent_layer_and_a_cell_called_alone():
    inputs = keras.Input((5, 3))
    shared, cell, reset_before = L.LSTM(3, return_sequences=True), L.LSTMCell(4), L.GRUCell(3, reset_after=False)
    x = shared(shared(inputs))
    zeros = keras.ops.zeros_like(x[:, :4, 0])
    h, states = cell(x[:, 0], [zeros, zeros])
    h, _ = cell(x[:, 1], states)
    h, _ = reset_before(h, L.Dense(3)(h))
    model = keras.Model(inputs, L.Dense(3)(h))
    x, y = batch(model, BATCH)
    randomize(model)
    assert_agrees_with_the_reference(model, x, y)


class MyCell(L.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(2.0 * inputs, states)


@pytest.mark.parametrize(
    "cell, reason",
    [
        (MyCell(3), "MyCell are not known"),
        # Keras's own loop on JAX fails where a cell computes in another dtype than the layer.
        pytest.param(L.GRUCell(3, dtype="float16"), "float16", marks=tensorflow_only),
    ],
)
def test_cells_with_other_equations_are_refused_by_the_name_of_the_layer(cell, reason):
    model = keras.Sequential([keras.Input((5, 3)), L.RNN(cell, name="mine"), L.Dense(3)])
    with pytest.raises(ValueError, match=rf"mine \(.*{reason}") as error:
        per_example_gradient_norms(model, np.ones((4, 5, 3), "float32"), np.zeros(4, "int64"), CROSS_ENTROPY)
    assert str(error.value).count("(") == 3  # one layer is named; two pieces of advice


@pytest.mark.skipif(not ON_JAX, reason="JAX only: on TensorFlow Keras computes them")
def test_masks_that_keras_broadcasts_over_the_wrong_axes_are_refused():
    model = classifier(MASKED_ON_IMAGES)
    x, y = batch(model, BATCH)
    with pytest.raises(ValueError, match="masked, and on JAX"):
        per_example_gradient_norms(model, x, y, CROSS_ENTROPY)


@tensorflow_only
def test_masks_that_keras_takes_in_the_wrong_order_are_refused():
    layer = L.GRU(3, unroll=True, go_backwards=True, zero_output_for_mask=True, return_sequences=True)
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, L.Dense(3)(layer(inputs, mask=inputs[..., 0] > 0)[:, -1]))
    x, y = batch(model, BATCH)
    with pytest.raises(ValueError, match="unroll=False"):
        per_example_gradient_norms(model, x, y, CROSS_ENTROPY)


@pytest.mark.each_value
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_reversible_embedding(tied, cap):
    ids = keras.Input((5,), dtype="int32")
    table = L.ReversibleEmbedding(7, 4, tie_weights=tied, logit_soft_cap=cap, mask_zero=True)
    logits = table(L.LSTM(4)(table(ids)), reverse=True)
    model = keras.Model(ids, logits)
    randomize(model)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 7, (BATCH, 5)), rng.integers(0, 7, BATCH)
    x[:, 0] = 1
    assert_agrees_with_the_reference(model, x, y)


@pytest.mark.each_value
@pytest.mark.parametrize("policy, rtol", [("mixed_float16", 2e-2), ("mixed_bfloat16", 1e-1)])
@pytest.mark.parametrize("case", ["lstm, sequences, no bias", "gru, reset before", "conv2d transpose", "rms norm"])
def test_half_precision(case, policy, rtol):
    # A few roundings of 2^-11 and 2^-8, more in loops over time.
    keras.config.set_dtype_policy(policy)
    model = classifier(case)
    x, y = batch(model, BATCH)
    assert_agrees_with_the_reference(model, x, y, rtol)
