"""Every private attribute or method of Keras and tf.distribute that this package relies on, sorted by topic.

Each has its reason here and a test in tests/test_keras_internals.py that fails when a new version changes it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask
from keras.src.backend.common.masking import set_keras_mask as attach_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.random.seed_generator import global_seed_generator
from keras.src.utils.jax_utils import is_in_jax_tracing_scope

# Layers.


def layers_within(model: Any) -> list[Any]:
    """Returns a model and the layers in it, at any depth of nesting, those inside wrappers and layers included.

    `_flatten_layers`: the public `layers` stops at nested models and sees no layer inside another one.
    """
    return list(model._flatten_layers())


def layers_inside(layer: Any) -> list[Any]:
    """Returns the layers in a layer, at any depth of nesting, without the layer itself; see `layers_within`."""
    return list(layer._flatten_layers(include_self=False))


def layers_that_take(model: Any, tensor: Any) -> list[tuple[Any, Any]]:
    """Returns the layers of a Functional model that are called on one of its tensors, each with its output.

    `Function._nodes_by_depth` and `Node.input_tensors`: a layer knows the tensors of all its calls, and of no graph.
    """
    nodes = [node for nodes in getattr(model, "_nodes_by_depth", {}).values() for node in nodes]
    taking = [node for node in nodes if any(t is tensor for t in node.input_tensors)]
    return [(node.operation, node.output_tensors[0]) for node in taking]


def recorded_losses(layer: Any) -> list[list[Any]]:
    """Returns the lists to which a layer appends what it adds to the loss; none for a layer that keeps no list.

    `_losses`, in tf_keras also `_eager_losses`: a forward pass that is only traced appends to them, and the public
    `losses` cannot be restored.
    """
    found = (getattr(layer, name, None) for name in ("_losses", "_eager_losses"))
    return [losses for losses in found if isinstance(losses, list)]


def takes_mask(layer: Any) -> bool:
    """Returns whether a layer's `call` takes a mask.

    `_call_has_mask_arg`: Keras works it out from the signature once, wrappers and `**kwargs` included.
    """
    return layer._call_has_mask_arg


def takes_training(layer: Any) -> bool:
    """Returns whether a layer's `call` takes the training mode; see `takes_mask`.

    `_call_has_training_arg`.
    """
    return layer._call_has_training_arg


def become_a_root(model: Any) -> None:
    """Has a model that is not built yet build its layers under its own name, also inside another model.

    `_parent_path`: Keras takes it from the layer that calls the model first, for good.
    """
    if getattr(model, "_parent_path", None) is None:
        model._parent_path = ""


def build_input_shape(model: Any) -> Any:
    """Returns the input shape that a model was built with by `build(input_shape)`; None if it was not.

    `_build_shapes_dict`: the public `get_build_config` reads it, and a model that overrides that has no other way.
    """
    shapes = model._build_shapes_dict
    return None if shapes is None else shapes["input_shape"]


# Recurrent layers. Their `call` runs these methods, in whose place per-example norms put others.
INNER_LOOP = "inner_loop"
DROPOUT_MASKS = "_maybe_config_dropout_masks"
FUSED_DIRECTIONS = ("_can_attempt_fused_lstm", "_can_attempt_fused_gru")


def make_dropout_masks(layer: Any, cell: Any, inputs: Any, state: Any) -> None:
    """Has a recurrent layer draw the dropout masks of its cell.

    `_maybe_config_dropout_masks`: with stacked cells it calls each of them, and those calls are no use of a variable.
    """
    getattr(type(layer), DROPOUT_MASKS)(layer, cell, inputs, state)


def global_random_state() -> Any:
    """Returns the variable that layers without a seed of their own draw random numbers from; None where they cannot.

    `global_seed_generator`: Keras has no public way to it, and a layer such as ConvNeXt's stochastic depth owns no
    generator whose state could be restored. In a program that JAX traces Keras lets no layer draw from it.
    """
    return None if is_in_jax_tracing_scope() else global_seed_generator().state


def stft_convolution(layer: Any, inputs: Any, kernel: Any) -> Any:
    """Returns STFTSpectrogram's convolution of every channel with a kernel: [B, channels, frequencies, frames].

    `_apply_conv`: the layer's `call` runs it for the real and for the imaginary part. Both uses are recorded where it
    runs, because only there is the result linear in the kernel.
    """
    return type(layer)._apply_conv(layer, inputs, kernel)


def stft_frame_step(layer: Any) -> int:
    """Returns the stride of STFTSpectrogram's convolution.

    `_frame_step`: the public `frame_step` is None where Keras takes its default.
    """
    return layer._frame_step


def stateless_scope() -> Any:
    """Returns the `keras.StatelessScope` in which this code runs, or None.

    `get_stateless_scope`: a scope inside another one does not inherit its values, so they must be passed on.
    """
    return get_stateless_scope()


def add_losses_again(model: Any, losses: Sequence[Any], values: Sequence[Any]) -> None:
    """Adds losses that layers added in another stateless scope to the present one, with these values.

    `_loss_ids`: a layer knows its own losses in a stateless scope by their identity.
    """
    scope = get_stateless_scope()
    for loss, value in zip(losses, values, strict=True):
        scope.add_loss(value)
        for layer in layers_within(model):
            if id(loss) in layer._loss_ids:
                layer._loss_ids.add(id(value))


def training_of_the_call(layer: Any) -> bool | None:
    """Returns the training mode in which a layer is being called, whether its `call` takes it or not.

    `_get_call_context`: a layer inside another one runs in that mode too, and must when it is run again alone.
    """
    return layer._get_call_context().get_value("training")


# Outputs.


def logits_kept_by_keras(output: Any) -> Any:
    """Returns the logits behind an output of `keras.activations.softmax` or `sigmoid`; None for other tensors.

    `_keras_logits`: Keras's losses read it so that a confident classifier's cross-entropy does not round to 0. Attacks
    need it for the same reason. There is no public way from an eager tensor to the logits it was made from.
    """
    return getattr(output, "_keras_logits", None)


def keep_logits(output: Any, logits: Any) -> None:
    """Attaches logits to a tensor, as `keras.activations.softmax` does; see `logits_kept_by_keras`."""
    output._keras_logits = logits


# Variables.


def without_autocast(variable: Any) -> Any:
    """Returns the variable inside the wrapper that casts in tf_keras's mixed precision; other variables unchanged.

    `AutoCastVariable._variable`: a gradient tape and a strategy know the variable inside alone.
    """
    return variable._variable if "AutoCast" in type(variable).__name__ else variable


# Strategies.


def leave_strategy(graph: Any) -> None:
    """Makes a graph under construction one that no strategy knows: its operations belong to no replica.

    `_distribution_strategy_stack`: the structure check of per-example norms traces a forward pass on one replica alone,
    in which a synchronized batch normalization would wait for the other replicas.
    """
    graph._distribution_strategy_stack = []


def memory_of_gpu(name: str) -> int:
    """Returns the bytes that TensorFlow may allocate on a GPU.

    `tensorflow.python.client.device_lib`: the public functions tell what is allocated and not what there is.

    Args:
        name: The logical device's name.
    """
    from tensorflow.python.client import device_lib

    return next(device.memory_limit for device in device_lib.list_local_devices() if device.name == name)


# Operations.


@functools.cache
def _add_takes_biases() -> bool:
    """Returns whether `keras.ops.add` adds what looks like a bias to the last axis; here it lies on the middle one."""
    if keras.backend.backend() == "jax":  # jax.numpy's; and inside a trace nothing can be computed and read
        return False
    with outside_the_graph():
        y = ops.add(ops.zeros((1, 2, 2)), ops.convert_to_tensor([[[0.0], [1.0]]]))
        return float(ops.convert_to_numpy(y)[0, 0, 1]) == 1.0


def added_shape(shape: tuple[int | None, ...], bias_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape with which `keras.ops.add(y, b)` adds `b`, of y's rank, to `y`.

    On TensorFlow `ops.add` takes a `b` with a single axis longer than 1 for a bias, and adds it to y's last axis if
    that is as long, else to y's axis 1 if that is, whichever axis it lies on. Otherwise NumPy's broadcasting holds.
    """
    sizes = [size for size in bias_shape if size != 1]
    axis = next((axis for axis in (-1, 1) if sizes == [shape[axis]]), None)
    if len(sizes) != 1 or axis is None:
        return bias_shape
    added = [1] * len(shape)
    added[axis] = sizes[0]
    lies_elsewhere = tuple(added) != bias_shape
    return tuple(added) if lies_elsewhere and _add_takes_biases() else bias_shape


# Optimizers. `apply` calls these methods one after the other; Keras offers no public one between the gradients and the
# variables of a single tensor. The layer-wise optimizers override them, by name and with these parameters.
OVERRIDDEN_OPTIMIZER_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "_backend_apply_gradients": (
        ("grads", "trainable_variables"),
        "gets gradients that are unscaled but not yet clipped, averaged and reduced: CLARS packs its norms here",
    ),
    "_backend_update_step": (
        ("grads", "trainable_variables", "learning_rate"),
        "sums the gradients over the replicas: CLARS's norms are one more pair",
    ),
    "_distributed_tf_update_step": (
        ("distribution", "grads_and_vars", "learning_rate"),
        "updates one variable at a time; layer-wise rates are packed in one update of all variables",
    ),
}


# What the layer-wise optimizers read of the optimizer that they inherit from.
INHERITED_OPTIMIZER_ATTRIBUTES = {
    "_get_variable_index": "numbers the variables, which are packed in this order",
    "_iterations": "counts the calls of apply, where the public iterations counts the updates of accumulated gradients",
    "_trainable_variables": "are the variables in their order; the public variables are the optimizer's own state",
}


def variable_index(optimizer: Any, variable: Any) -> int | None:
    """Returns the number of a variable among those that a Keras optimizer was built with; None for another variable.

    `_var_key`, `_trainable_variables_indices`: Keras's own `_get_variable_index` raises a KeyError without a name.
    """
    return optimizer._trainable_variables_indices.get(optimizer._var_key(variable))


def moving_averages(optimizer: Any) -> list[Any]:
    """Returns the moving averages that a Keras optimizer with `use_ema=True` keeps, in the order of its variables.

    `_model_variables_moving_average`: Keras's own `finalize_variable_values` refuses to overwrite a part of them, which
    is what `fit` asks for once layers are frozen, and on JAX leaves variable and average one array, which the step of
    the next `fit` cannot donate twice.
    """
    return optimizer._model_variables_moving_average


def trained_variables(optimizer: Any) -> list[Any]:
    """Returns the variables that a Keras optimizer was built with, in their order.

    `_trainable_variables`: the public `variables` holds the optimizer's own state.
    """
    return optimizer._trainable_variables


def learning_rate_schedule(optimizer: Any) -> Any:
    """Returns the schedule of a Keras optimizer; None for a constant learning rate.

    `_learning_rate`: the public `learning_rate` gives the value for the coming update, and a record needs that of the
    last one.
    """
    schedule = getattr(optimizer, "_learning_rate", None)
    return schedule if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) else None


# Trainers. `LargeBatchModel` and `ConAdvModel` override these methods of Keras's trainer on JAX, with these parameters.
OVERRIDDEN_TRAINER_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "_get_jax_state": (
        (
            "trainable_variables",
            "non_trainable_variables",
            "optimizer_variables",
            "metrics_variables",
            "purge_model_variables",
        ),
        "takes the values out of the variables: they are noted for a first step that fails",
    ),
    "_symbolic_build": (
        ("iterator", "data_batch"),
        "builds what a step needs before it is traced: the wrapped model gets its own names here, ConAdv its snapshots",
    ),
    "jax_state_sync": ((), "gives the variables their values back: callbacks call it in the middle of an epoch"),
}


def compiled_loss(model: Any) -> Any:
    """Returns the `CompileLoss` of a compiled model; None without a loss.

    `_compile_loss`: the public `loss` is what `compile` was given, without what each output's loss divides by.
    """
    return model._compile_loss


def loss_tracker(model: Any) -> Any:
    """Returns the metric of the loss that `fit` shows.

    `_loss_tracker`: Keras updates it in the `train_step` that wrappers replace.
    """
    return model._loss_tracker


# What `compile` sets and what keras.Model's own methods read; on JAX, the losses of the forward pass that was made. A
# wrapped model has them from its wrapper while one of its own methods runs.
COMPILED_ATTRIBUTES = (
    "optimizer",
    "loss",
    "compiled",
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
    "_losses_override",
)


@contextlib.contextmanager
def without_weight_regularizers(*models: Any) -> Iterator[None]:
    """Within it `losses` of the models holds no weight regularizers.

    `_get_regularization_losses`: the public `losses` adds them to what layers add; the streams of a batch share them,
    so they count once.
    """
    try:
        for model in models:
            object.__setattr__(model, "_get_regularization_losses", list)
        yield
    finally:
        for model in models:
            vars(model).pop("_get_regularization_losses", None)


def default_jit_compile(model: Any) -> bool:
    """Returns what `jit_compile="auto"` means for a model on this backend and these devices.

    `_resolve_auto_jit_compile`: Keras saves the answer in place of "auto", which is another one on another backend.
    """
    return model._resolve_auto_jit_compile()


def note_handed_out_state(
    model: Any,
    state: Sequence[Any],
    trainable_variables: bool = False,
    non_trainable_variables: bool = False,
    optimizer_variables: bool = False,
    metrics_variables: bool = False,
    purge_model_variables: bool = False,
) -> None:
    """Notes the values that Keras's trainer on JAX took from the variables, so that `jax_state_sync` gives them back.

    `_jax_state`, by the parameters of `_get_jax_state`: before its first step the trainer empties the variables,
    and it notes their values after a step only. If the first step is refused, they would be lost.
    """
    if not purge_model_variables:
        return
    groups = {
        "trainable_variables": trainable_variables,
        "non_trainable_variables": non_trainable_variables,
        "optimizer_variables": optimizer_variables,
        "metrics_variables": metrics_variables,
    }
    model._jax_state = dict(zip((name for name, taken in groups.items() if taken), state, strict=True))


# Checkpoints.
TRACKED_CHILDREN = "_trackable_children"  # overridden by StaleWeights: tf.train.Checkpoint saves what it returns

# Losses.


def keras_mask(tensor: Any) -> Any:
    """Returns the mask that a layer or a loss attached to a tensor, or None.

    `get_keras_mask`: Keras's losses divide by the number of elements that it keeps, and there is no public way to read
    it. On JAX, whose arrays take no attributes, Keras keeps it in a table.
    """
    return get_keras_mask(tensor)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, as a layer does; see `keras_mask`."""
    attach_keras_mask(tensor, mask)


def loss_terms(compile_loss: Any) -> list[Any]:
    """Returns the terms of a built compiled loss, named tuples with `loss`, `loss_weights` and `name`.

    `CompileLoss._flat_losses`: only there each output's loss stands alone, with what it divides by.
    """
    return list(compile_loss._flat_losses)


@contextlib.contextmanager
def replaced_loss_terms(compile_loss: Any, losses: Sequence[Any], with_metrics: bool = True) -> Iterator[None]:
    """Within it a built compiled loss calls these losses in place of its own, and updates its metrics or not.

    `CompileLoss._flat_losses` and `_metrics`: see `loss_terms`; its metrics are one for each of several terms.
    """
    terms, metrics = compile_loss._flat_losses, compile_loss._metrics
    compile_loss._flat_losses = [term._replace(loss=loss) for term, loss in zip(terms, losses, strict=True)]
    if not with_metrics:
        compile_loss._metrics = [None] * len(terms)
    try:
        yield
    finally:
        compile_loss._flat_losses, compile_loss._metrics = terms, metrics


def without_loss_metrics(model: Any) -> contextlib.AbstractContextManager[None]:
    """Returns a context within which a compiled model's loss does not update the metrics of its outputs' losses.

    See `replaced_loss_terms`: the metrics are those of the clean images, and each stream of a batch computes the loss.
    """
    compile_loss = compiled_loss(model)
    if compile_loss is None or not compile_loss.built:
        return contextlib.nullcontext()
    losses = [term.loss for term in loss_terms(compile_loss)]
    return replaced_loss_terms(compile_loss, losses, with_metrics=False)


def reading_logits(loss: Any, function_of_logits: Any = None) -> Any:
    """Returns a loss of Keras's as it is with `from_logits=True`; None if it reads no logits.

    `LossFunctionWrapper.fn` and `_fn_kwargs`: see `wrapped_function`. Losses that `compile` made of a name have no
    configuration to make another one of.

    Args:
        loss: A loss object.
        function_of_logits: Another function of labels and logits that computes the same; None for Keras's.
    """
    function, arguments = wrapped_function(loss)
    of_keras = getattr(function, "__module__", "").startswith("keras.")
    if not of_keras or "from_logits" not in inspect.signature(function).parameters:
        return None
    changed = copy.copy(loss)
    changed._fn_kwargs = {**arguments, "from_logits": True}
    changed.fn = function_of_logits or function
    return changed


@contextlib.contextmanager
def outside_the_graph() -> Iterator[None]:
    """Within it TensorFlow creates variables that do not belong to the graph under construction.

    `experimental_enable_variable_lifting`: in `tf.init_scope` alone a `tf.function` takes the variables for its own,
    and is then traced a second time.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def create(next_creator: Any, **arguments: Any) -> Any:
        return next_creator(**{**arguments, "experimental_enable_variable_lifting": False})

    with tf.init_scope(), tf.variable_creator_scope(create):
        yield


def build_compile_loss(compile_loss: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Builds a compiled loss and its metrics from tensors or their specs, without a computation.

    `keras.src.backend.compute_output_spec`, by which Keras builds it under a strategy: in a step that is being traced
    the metrics would be created inside the graph.
    """
    _call_with_specs(compile_loss, y, y_pred, sample_weight)


def build_compile_metrics(model: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Builds the compiled metrics of a model, if they are not, from tensors or their specs; see `build_compile_loss`.

    `_compile_metrics`, which compiles names to metrics, and creates their variables, when it is updated first.
    """
    if model._compile_metrics is not None and not model._compile_metrics.built:
        _call_with_specs(model._compile_metrics.update_state, y, y_pred, sample_weight)


def _call_with_specs(function: Any, *arguments: Any) -> None:
    """Calls a function with the specs of tensors, outside of the graph under construction."""
    from keras.src import backend

    def spec(t: Any) -> Any:
        return None if t is None else keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype))

    specs = keras.tree.map_structure(spec, arguments)
    with outside_the_graph():
        backend.compute_output_spec(function, *specs)


def output_spec(model: Any, x: Any) -> Any:
    """Returns the specs of a model's outputs for inputs, from a trace in a scratch graph; see `build_compile_loss`."""
    return specs_of(functools.partial(model, training=False), x)


def specs_of(function: Any, x: Any) -> Any:
    """Returns the specs of what a function of tensors returns, from a trace in a scratch graph.

    `keras.src.backend.compute_output_spec`; see `build_compile_loss`.
    """
    from keras.src import backend

    specs = keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x)
    with outside_the_graph():
        return backend.compute_output_spec(function, specs)


def of_same_rank(mask: Any, weights: Any) -> tuple[Any, Any]:
    """Returns a mask and sample weights in shapes that broadcast, as a loss of Keras's makes them.

    `keras.src.losses.loss.squeeze_or_expand_to_same_rank`.
    """
    from keras.src.losses.loss import squeeze_or_expand_to_same_rank

    return squeeze_or_expand_to_same_rank(mask, weights)


def wrapped_function(loss: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the function behind a loss of Keras's and its keyword arguments; (None, {}) for other losses.

    `LossFunctionWrapper._fn_kwargs`: the arguments (`axis`, `ignore_class`) say what the loss divides by.
    """
    return getattr(loss, "fn", None), getattr(loss, "_fn_kwargs", {})
