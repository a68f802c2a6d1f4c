"""What tf_largebatch.keras_internals relies on, checked against the installed Keras."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch import keras_internals


def test_an_optimizer_holds_its_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    found = keras_internals.learning_rate_schedule(keras.optimizers.SGD(schedule))
    assert found is schedule, "Keras's optimizers no longer hold their schedule in _learning_rate"
    assert keras_internals.learning_rate_schedule(keras.optimizers.SGD(0.1)) is None


def test_layers_are_found_at_any_depth():
    inner = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((2, 3)), keras.Sequential([keras.layers.TimeDistributed(inner)])])
    assert any(layer is inner for layer in keras_internals.layers_within(model)), (
        "_flatten_layers no longer goes inside"
    )


def test_a_layer_without_a_seed_draws_from_the_global_generator():
    state = keras_internals.global_random_state()
    before = state.numpy()
    keras.random.uniform((1,))
    assert (state.numpy() != before).any(), "global_seed_generator().state is no longer what unseeded layers use"


def test_code_can_ask_for_the_stateless_scope_in_which_it_runs():
    variable = keras.Variable(1.0)
    assert keras_internals.stateless_scope() is None
    with keras.StatelessScope() as scope:
        assert keras_internals.stateless_scope() is scope, "get_stateless_scope no longer returns the scope"
        variable.assign(2.0)
        assert id(variable) in scope.state_mapping, "StatelessScope no longer keeps values by id in state_mapping"


def test_an_optimizer_holds_its_variables_in_order():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    found = keras_internals.trained_variables(optimizer)
    assert [id(v) for v in found] == [id(v) for v in model.trainable_variables], "_trainable_variables has changed"


def test_an_optimizer_keeps_its_moving_averages_in_the_order_of_its_variables():
    trained = [keras.Variable([1.0, 2.0], name="a"), keras.Variable([[3.0]], name="b")]
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    optimizer.build(trained)
    found = [tuple(average.shape) for average in keras_internals.moving_averages(optimizer)]
    assert found == [(2,), (1, 1)], "_model_variables_moving_average has changed"


def test_keras_keeps_the_logits_of_a_softmax_and_a_sigmoid():
    logits = tf.constant([[1.0, 2.0, 4.0]])
    for activation in (keras.activations.softmax, keras.activations.sigmoid):
        kept = keras_internals.logits_kept_by_keras(activation(logits))
        assert kept is not None, f"keras.activations.{activation.__name__} no longer sets _keras_logits on its output"
        np.testing.assert_array_equal(kept, logits)
    assert keras_internals.logits_kept_by_keras(logits) is None


def test_a_graph_can_leave_the_strategy(two_replicas):
    found = []

    def replica():
        @tf.function(autograph=False)
        def traced():
            keras_internals.leave_strategy(tf.compat.v1.get_default_graph())
            found.append(tf.distribute.get_strategy().num_replicas_in_sync)

        traced.get_concrete_function()

    tf.function(lambda: two_replicas.run(replica), autograph=False)()
    assert found == [1, 1], "tf.distribute keeps a graph's strategy elsewhere than in _distribution_strategy_stack"


@pytest.mark.parametrize("name", keras_internals.OVERRIDDEN_OPTIMIZER_METHODS)
def test_optimizers_have_the_methods_that_layer_wise_ones_override(name):
    parameters, reason = keras_internals.OVERRIDDEN_OPTIMIZER_METHODS[name]
    method = getattr(keras.optimizers.Optimizer, name, None)
    assert method is not None, f"keras.optimizers.Optimizer has no {name} any more, which {reason}"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == parameters, f"keras.optimizers.Optimizer.{name} has new parameters {found}; it {reason}"


def test_optimizers_number_their_variables():
    variables = [keras.Variable(1.0), keras.Variable(2.0)]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    assert [keras_internals.variable_index(optimizer, v) for v in (*variables, variables[1].value)] == [0, 1, 1]
    assert keras_internals.variable_index(optimizer, keras.Variable(1.0)) is None


def test_spectrograms_convolve_in_a_method_of_their_own():
    layer = keras.layers.STFTSpectrogram(frame_length=8)
    layer.build((1, 32, 2))
    assert keras_internals.stft_frame_step(layer) == 4, "STFTSpectrogram._frame_step is not half a frame by default"
    y = keras_internals.stft_convolution(layer, tf.ones([1, 32, 2]), layer.real_kernel)
    assert y.shape == (1, 2, 5, 7), "STFTSpectrogram._apply_conv is not [B, channels, frequencies, frames]"


def test_a_layer_without_a_training_argument_can_ask_for_the_mode():
    class Asks(keras.layers.Layer):
        def call(self, x):
            found.append(keras_internals.training_of_the_call(self))
            return x

    found = []
    model = keras.Sequential([keras.Input((2,)), Asks()])
    found.clear()
    for training in (True, False):
        model(np.zeros((1, 2)), training=training)
    assert found == [True, False], "Keras keeps the training mode of a call elsewhere than in _get_call_context()"


def test_keras_keeps_the_mask_of_a_tensor():
    words = keras.layers.Embedding(3, 2, mask_zero=True)(np.array([[1, 0]]))
    mask = keras_internals.keras_mask(words)
    assert mask is not None, "layers no longer set _keras_mask on their outputs"
    np.testing.assert_array_equal(mask, [[True, False]])


def test_a_compiled_loss_holds_its_terms():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss=keras.losses.Dice(axis=1))
    compile_loss, y = model._compile_loss, tf.ones((3, 1))
    keras_internals.build_compile_loss(compile_loss, y, y, None)
    assert compile_loss.built, "keras.src.backend.compute_output_spec no longer builds a compiled loss"
    (term,) = keras_internals.loss_terms(compile_loss)
    function, arguments = keras_internals.wrapped_function(term.loss)
    assert function is keras.losses.dice and arguments["axis"] == 1, "a loss's fn or _fn_kwargs are no longer there"
    with keras_internals.replaced_loss_terms(compile_loss, [lambda *_: tf.constant(5.0)], with_metrics=False):
        assert float(compile_loss(y, y)) == 5.0, "CompileLoss no longer calls _flat_losses"
    assert float(compile_loss(y, y)) < 1.0
    mask, weights = keras_internals.of_same_rank(tf.ones((2, 1)), tf.ones(2))
    assert len(mask.shape) == len(weights.shape), "squeeze_or_expand_to_same_rank no longer makes ranks equal"
    assert keras_internals.output_spec(model, tf.ones((3, 2))).shape == (3, 1)


def test_the_default_of_jit_compile():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse", jit_compile="auto")
    found = keras_internals.default_jit_compile(net)
    assert net.get_compile_config()["jit_compile"] == found, "Keras no longer saves what jit_compile='auto' means"


def test_keras_on_jax_takes_the_values_of_variables_as_before():
    pytest.importorskip("jax")
    from keras.src.backend.jax.trainer import JAXTrainer

    parameters = list(inspect.signature(JAXTrainer._get_jax_state).parameters)[1:]
    expected = list(inspect.signature(keras_internals.handed_out_state).parameters)[1:]
    assert parameters == expected, "_get_jax_state has other parameters: LargeBatchModel keeps values for a failed step"
    source = inspect.getsource(JAXTrainer.jax_state_sync)
    assert all(f'"{name}"' in source for name in expected[:-1]), "jax_state_sync reads other groups of _jax_state"
