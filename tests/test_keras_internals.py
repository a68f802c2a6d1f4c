"""What tf_largebatch.keras_internals relies on, checked against the installed Keras."""

from __future__ import annotations

import ast
import functools
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import ops

from tf_largebatch import keras_internals

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="TensorFlow only: nothing relies on it on JAX"
)

ROOT = pathlib.Path(keras_internals.__file__).parent
LISTS = ("keras_internals.py", "tf_keras/keras_internals.py")
# Rules of KerasHub's and Model Garden's layers compute with the layers' parts, which the tests of these rules hold.
# Model Garden's configs and parsers and Python's pool of processes have no public way to what is needed.
OTHER_LIBRARIES = (
    "norms/rules/keras_hub.py",
    "model_garden/rules/",
    "model_garden/inputs.py",
    "model_garden/refusals.py",
    "study/runner.py",
)
# Attributes of classes that inherit nothing from Keras.
NOT_FROM_KERAS = {"_loss", "_model", "_moments", "_outputs", "_path", "_value"}
# Where the classes of Keras's are that this package's inherit from.
BASES = (
    "backend/jax/layer.py",
    "backend/jax/optimizer.py",
    "backend/jax/trainer.py",
    "backend/tensorflow/layer.py",
    "backend/tensorflow/optimizer.py",
    "backend/tensorflow/trackable.py",
    "backend/tensorflow/trainer.py",
    "callbacks/callback.py",
    "layers/layer.py",
    "models/model.py",
    "ops/operation.py",
    "optimizers/base_optimizer.py",
    "trainers/trainer.py",
)
BY_NAME = ("getattr", "hasattr", "setattr", "delattr", "object.__setattr__")
PRIVATE = re.compile(r"_[a-z]\w*")


def private_names(tree):
    """The private names that a module uses, those that it defines, and of these the ones of members of classes."""
    used, defined, members = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "os":  # os._exit is documented
            used.add(node.attr)
            if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                members.add(node.attr)
        elif (
            isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME and isinstance(node.args[1], ast.Constant)
        ):
            name = node.args[1].value
            used.add(name)
            if ast.unparse(node.func) == "object.__setattr__" and ast.unparse(node.args[0]) == "self":
                members.add(name)
        elif isinstance(node, ast.ClassDef):
            members |= {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return [{n for n in names if PRIVATE.fullmatch(n)} for names in (used, defined | members, members)]


def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache  # each worker imports this file, and one of them reads the package
def names():
    """The `private_names` of each module."""
    return {path.relative_to(ROOT).as_posix(): private_names(tree_of(path)) for path in sorted(ROOT.rglob("*.py"))}


def listed():
    """What stands in tables of names; there are functions for all else."""
    found = (ast.walk(tree_of(ROOT / module)) for module in LISTS)
    return {node.value for nodes in found for node in nodes if isinstance(node, ast.Constant)}


def test_what_is_private_in_keras_is_used_in_one_file():
    own = set().union(*(defined for module, (_, defined, _) in names().items() if module not in LISTS))
    elsewhere = {
        name: module
        for module, (used, _, _) in names().items()
        if module not in LISTS and not module.startswith(OTHER_LIBRARIES)
        for name in used - own - listed()
    }
    assert not elsewhere, "move these uses of private names into keras_internals.py, with a reason and a test"


def test_no_private_name_of_keras_is_overridden_by_accident():
    in_keras = set().union(
        *(private_names(tree_of(pathlib.Path(keras.src.__file__).parent / base))[1] for base in BASES)
    )
    assert {"_flatten_layers", "_symbolic_build", "_trainable_variables"} <= in_keras
    members = set().union(*(members for *_, members in names().values()))
    both = (members & in_keras) - listed() - NOT_FROM_KERAS
    assert not both, (
        "Keras has private attributes of these names: rename them, list them in keras_internals.py if they override "
        "Keras's, or in NOT_FROM_KERAS above if the class inherits nothing from Keras"
    )


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
    without = keras_internals.layers_inside(model)
    assert any(layer is inner for layer in without) and all(layer is not model for layer in without)


def test_a_layer_lists_the_losses_that_it_adds():
    layer = keras.layers.ActivityRegularization(l2=1.0)
    layer(ops.ones((1, 2)))
    (losses,) = keras_internals.recorded_losses(layer)
    assert [float(loss) for loss in losses] == [float(loss) for loss in layer.losses], "layers keep losses elsewhere"


def test_layers_know_what_their_call_takes():
    flatten, dropout = keras.layers.Flatten(), keras.layers.Dropout(0.5)
    assert [keras_internals.takes_training(layer) for layer in (flatten, dropout)] == [False, True], (
        "_call_has_training_arg no longer says whether call takes the training mode"
    )
    assert [keras_internals.takes_mask(layer) for layer in (flatten, keras.layers.LSTM(1))] == [False, True], (
        "_call_has_mask_arg no longer says whether call takes a mask"
    )


def test_a_model_inside_another_one_can_be_built_under_its_own_name():
    class Outer(keras.Model):
        def __init__(self, inner):
            super().__init__(name="outer")
            self.inner = inner

        def call(self, x):
            return self.inner(x)

        def build(self, input_shape):
            self.inner.build(input_shape)

    inner = keras.Sequential([keras.layers.Dense(1, name="dense")], name="inner")
    keras_internals.become_a_root(inner)
    outer = Outer(inner)
    outer.build((None, 2))
    assert inner.weights[0].path == "inner/dense/kernel", "_parent_path no longer decides where a model's paths begin"
    assert keras_internals.build_input_shape(outer) == (None, 2), "_build_shapes_dict no longer holds input_shape"
    assert keras_internals.build_input_shape(Outer(inner)) is None


def test_recurrent_layers_call_the_methods_that_are_replaced():
    # Two cells: Keras's loop on JAX fails for a stack of one that has two states.
    layer = keras.layers.RNN(keras.layers.StackedRNNCells([keras.layers.LSTMCell(2), keras.layers.LSTMCell(2)]))
    source = inspect.getsource(keras.layers.RNN)
    for name in (keras_internals.INNER_LOOP, keras_internals.DROPOUT_MASKS):
        assert f"self.{name}(" in source, f"keras.layers.RNN no longer calls {name}"
    x = ops.ones((1, 3, 2))
    layer(x)
    keras_internals.make_dropout_masks(layer, layer.cell, x[:, 0], layer.get_initial_state(1))
    source = inspect.getsource(keras.layers.Bidirectional)
    # Before Keras 3.15 there was no kernel for both directions.
    if "fused" in source or tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15):
        for name in keras_internals.FUSED_DIRECTIONS:
            assert f"self.{name}(" in source, f"keras.layers.Bidirectional no longer asks {name}"


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


@pytest.mark.parametrize(
    "shape, bias_shape",
    [
        ((1, 2, 2), (1, 2, 1)),
        ((1, 2, 2), (1, 1, 2)),
        ((2, 3, 4), (1, 3, 1)),
        ((2, 3, 3, 4), (1, 1, 3, 1)),
        ((2, 4, 3, 1), (1, 1, 3, 1)),
        ((2, 3, 3, 3), (1, 1, 3, 1)),
        ((2, 3, 3), (1, 3, 3)),
        ((2, 3, 3), (1, 1, 1)),
        ((2, 1, 1), (1, 1, 1)),
    ],
)
def test_the_axis_to_which_keras_adds_a_bias(shape, bias_shape):
    bias = np.arange(1.0, 1.0 + np.prod(bias_shape)).reshape(bias_shape).astype("float32")
    added = keras_internals.added_shape(shape, bias_shape)
    expected = np.broadcast_to(bias.reshape(added), shape)
    found = ops.convert_to_numpy(ops.add(ops.zeros(shape), bias))
    np.testing.assert_array_equal(found, expected, "keras.ops.add adds biases to other axes now: see added_shape")
    if keras.backend.backend() == "jax":
        assert added == bias_shape


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


@tensorflow_only
def test_keras_keeps_the_logits_of_a_softmax_and_a_sigmoid():
    logits = ops.convert_to_tensor([[1.0, 2.0, 4.0]])
    for activation in (keras.activations.softmax, keras.activations.sigmoid):
        kept = keras_internals.logits_kept_by_keras(activation(logits))
        assert kept is not None, f"keras.activations.{activation.__name__} no longer sets _keras_logits on its output"
        np.testing.assert_array_equal(kept, logits)
    assert keras_internals.logits_kept_by_keras(logits) is None
    probabilities = ops.softmax(logits)
    keras_internals.keep_logits(probabilities, 2 * logits)
    loss = keras.losses.categorical_crossentropy([[1.0, 0.0, 0.0]], probabilities)
    expected = keras.losses.categorical_crossentropy([[1.0, 0.0, 0.0]], 2 * logits, from_logits=True)
    assert np.allclose(loss, expected), "a loss no longer reads the logits that are attached to a tensor"


def test_a_graph_can_leave_the_strategy(two_replicas):
    import tensorflow as tf

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
    if name == "_distributed_tf_update_step" and keras.backend.backend() == "jax":
        pytest.skip("TensorFlow only: optimizers have it on no other backend")
    method = getattr(keras.optimizers.Optimizer, name, None)
    assert method is not None, f"keras.optimizers.Optimizer has no {name} any more, which {reason}"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == parameters, f"keras.optimizers.Optimizer.{name} has new parameters {found}; it {reason}"


@pytest.mark.parametrize("name", keras_internals.INHERITED_OPTIMIZER_ATTRIBUTES)
def test_optimizers_have_the_attributes_that_layer_wise_ones_read(name):
    reason = keras_internals.INHERITED_OPTIMIZER_ATTRIBUTES[name]
    assert hasattr(keras.optimizers.SGD(), name), f"keras.optimizers.Optimizer has no {name} any more, which {reason}"


def test_optimizers_number_their_variables():
    variables = [keras.Variable(1.0), keras.Variable(2.0)]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    assert [keras_internals.variable_index(optimizer, v) for v in variables] == [0, 1]
    if keras.backend.backend() == "tensorflow":  # whose variable it is, not only the value
        assert keras_internals.variable_index(optimizer, variables[1].value) == 1
    assert keras_internals.variable_index(optimizer, keras.Variable(1.0)) is None


def test_spectrograms_convolve_in_a_method_of_their_own():
    layer = keras.layers.STFTSpectrogram(frame_length=8)
    layer.build((1, 32, 2))
    assert keras_internals.stft_frame_step(layer) == 4, "STFTSpectrogram._frame_step is not half a frame by default"
    y = keras_internals.stft_convolution(layer, ops.ones((1, 32, 2)), layer.real_kernel)
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
    compile_loss, y = model._compile_loss, ops.ones((3, 1))
    keras_internals.build_compile_loss(compile_loss, y, y, None)
    assert compile_loss.built, "keras.src.backend.compute_output_spec no longer builds a compiled loss"
    (term,) = keras_internals.loss_terms(compile_loss)
    function, arguments = keras_internals.wrapped_function(term.loss)
    assert function is keras.losses.dice and arguments["axis"] == 1, "a loss's fn or _fn_kwargs are no longer there"
    with keras_internals.replaced_loss_terms(compile_loss, [lambda *_: ops.convert_to_tensor(5.0)], with_metrics=False):
        assert float(compile_loss(y, y)) == 5.0, "CompileLoss no longer calls _flat_losses"
    assert float(compile_loss(y, y)) < 1.0
    mask, weights = keras_internals.of_same_rank(ops.ones((2, 1)), ops.ones(2))
    assert len(mask.shape) == len(weights.shape), "squeeze_or_expand_to_same_rank no longer makes ranks equal"
    assert keras_internals.output_spec(model, ops.ones((3, 2))).shape == (3, 1)
    specs = keras_internals.specs_of(lambda x: [x, x[:, 0]], ops.ones((3, 2)))
    assert [tuple(spec.shape) for spec in specs] == [(3, 2), (3,)]


def test_compiled_metrics_are_built_ahead():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    y = ops.ones((3, 1))
    keras_internals.build_compile_metrics(model, y, y, None)
    assert model._compile_metrics.built, "keras.src.backend.compute_output_spec no longer builds compiled metrics"
    assert model.evaluate(np.ones((3, 2)), np.ones((3, 1)), verbose=0, return_dict=True).keys() == {"loss", "mae"}


@tensorflow_only
def test_variables_are_created_outside_of_a_traced_function():
    import tensorflow as tf

    traces, made = [], []

    @tf.function(autograph=False)
    def step():
        traces.append(1)
        with keras_internals.outside_the_graph():
            made.append(keras.Variable(2.0))
        return made[0] + 1

    assert float(step()) == 3
    assert len(traces) == 1, "experimental_enable_variable_lifting no longer keeps a variable out of a tf.function"


def test_losses_of_several_outputs():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1, "sigmoid")(inputs) for _ in range(2)])
    model.compile(loss=["binary_crossentropy", "mse"])
    total, y = keras_internals.compiled_loss(model), [ops.zeros((3, 1)), ops.zeros((3, 1))]
    keras_internals.build_compile_loss(total, y, y, None)
    with keras_internals.without_loss_metrics(model):
        total(y, [one + 0.5 for one in y])
    assert all(float(metric.result()) == 0 for metric in total.metrics), "CompileLoss no longer keeps its _metrics"
    binary, squared = (term.loss for term in keras_internals.loss_terms(total))
    assert keras_internals.reading_logits(squared) is None
    of_logits = keras_internals.reading_logits(binary)
    found = [float(loss(y[0], y[0])) for loss in (of_logits, binary)]
    np.testing.assert_allclose(found, [np.log(2), 0], atol=1e-5, err_msg="losses no longer pass on their _fn_kwargs")
    (first, output), (second, _) = keras_internals.layers_that_take(model, model.inputs[0])
    assert {first, second} == set(model.layers[1:]), "Functional models no longer keep their _nodes_by_depth"
    assert any(output is one for one in model.outputs)


def test_the_default_of_jit_compile():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse", jit_compile="auto")
    found = keras_internals.default_jit_compile(net)
    assert net.get_compile_config()["jit_compile"] == found, "Keras no longer saves what jit_compile='auto' means"


def trainer_on_jax():
    """Keras's class, whose name Keras 3.16 changes."""
    from keras.src.backend.jax import trainer

    return getattr(trainer, "JAXTrainer", None) or trainer.Trainer


@pytest.mark.parametrize("name", keras_internals.OVERRIDDEN_TRAINER_METHODS)
def test_the_trainer_on_jax_has_the_methods_that_wrappers_override(name):
    pytest.importorskip("jax")
    parameters, reason = keras_internals.OVERRIDDEN_TRAINER_METHODS[name]
    method = getattr(trainer_on_jax(), name, None)
    assert method is not None, f"Keras's trainer on JAX has no {name} any more, which {reason}"
    found = tuple(inspect.signature(method).parameters)[1:]
    assert found == parameters, f"{name} of Keras's trainer on JAX has new parameters {found}; it {reason}"


def test_keras_on_jax_gives_noted_values_back():
    pytest.importorskip("jax")
    names = list(inspect.signature(keras_internals.note_handed_out_state).parameters)[2:]
    assert tuple(names) == keras_internals.OVERRIDDEN_TRAINER_METHODS["_get_jax_state"][0]
    trainer = trainer_on_jax()
    # Keras 3.16 keeps jax_state_sync as another name of state_sync.
    source = inspect.getsource(getattr(trainer, "state_sync", trainer.jax_state_sync))
    assert all(f'"{name}"' in source for name in names[:-1]), "jax_state_sync reads other groups of _jax_state"


def test_a_compiled_model_keeps_its_loss_and_the_metric_of_it():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    x, y = np.ones((1, 2)), np.ones((1, 1))
    assert float(keras_internals.compiled_loss(net)(y, net(x))) == float(ops.sum((y - net(x)) ** 2))
    assert net.test_on_batch(x, y) == float(keras_internals.loss_tracker(net).result()), "_loss_tracker has changed"
    missing = [name for name in keras_internals.COMPILED_ATTRIBUTES[:-1] if name not in vars(net)]
    assert not missing, f"compile no longer sets {missing}: a wrapped model's own methods need what it sets"


def test_weight_regularizers_can_be_left_out_of_the_losses():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    with keras_internals.without_weight_regularizers(net):
        assert net.losses == [], "losses no longer asks _get_regularization_losses"
    assert len(net.losses) == 1


@tensorflow_only
def test_checkpoints_ask_layers_for_what_to_save():
    name = keras_internals.TRACKED_CHILDREN
    assert callable(getattr(keras.layers.Layer, name, None)), f"layers on TensorFlow have no {name} any more"
