"""Every private attribute or method of tf_keras that this package relies on, sorted by topic.

Each has its reason here and a test in tests/tf_keras/test_tf_keras_internals.py that fails when a new version changes
it. What both Keras worlds have is in `tf_largebatch.keras_internals`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_largebatch.keras_internals import layers_within

# Layers.


def adds_losses(layer: Any) -> bool:
    """Returns whether a layer, or one inside it, added a loss in its last call.

    `_losses` in a graph and `_eager_losses` in eager execution: the public `losses` holds the weight regularizers as
    well, which are allowed.
    """
    return any(inner._losses or inner._eager_losses for inner in layers_within(layer))


# Batch normalization.


def batch_norm_training(layer: Any, training: Any) -> Any:
    """Returns whether a batch normalization uses the batch's statistics, as a bool, int or tensor.

    `_get_training_value`: a frozen layer, or one without the argument, decides otherwise than its caller.
    """
    return layer._get_training_value(training)


def batch_norm_data_format(layer: Any) -> str:
    """Returns the layout in which a fused batch normalization runs: "NHWC", "NCHW", "NDHWC" or "NCDHW".

    `_data_format`: worked out from the axis and the rank when the layer is built.
    """
    return layer._data_format


def batch_norm_moments(
    layer: Any, x: tf.Tensor, axes: list[int], mask: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mean and variance that a batch normalization takes over these axes.

    `_moments`: it leaves masked steps out, and sums over the replicas where the layer is synchronized.
    """
    return layer._moments(x, axes, keep_dims=False, mask=mask)


def move_averages(layer: Any, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> None:
    """Moves the averages of a batch normalization towards the statistics of its inputs.

    `_assign_moving_average`, `_support_zero_size_input`: they leave the averages alone on a replica without examples.
    """
    count = tf.shape(x)[0] if layer._support_zero_size_input() else None
    layer._assign_moving_average(layer.moving_mean, mean, layer.momentum, count)
    layer._assign_moving_average(layer.moving_variance, variance, layer.momentum, count)


# Variables.


def variable_key(variable: Any) -> Any:
    """Returns what identifies a variable: the same for a replica's component, the whole and their autocast wrapper.

    `_unique_id`: the public `ref()` differs between the three. `_distributed_container`, which a component's handle
    has, leads from a component to the whole.
    """
    handle = None if hasattr(variable, "values") else getattr(variable, "handle", None)
    container = getattr(handle, "_distributed_container", None)
    whole = container() if container is not None else None
    return (variable if whole is None else whole)._unique_id


# Optimizers. tf_keras's legacy optimizer calls these methods one after the other, and has no public ones between the
# gradients and the variables. The layer-wise optimizers override them, by name and with these parameters.
OVERRIDDEN_OPTIMIZER_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "_aggregate_gradients": (
        ("grads_and_vars",),
        "sums the gradients over the replicas: CLARS's norms are one more pair",
    ),
    "_create_slots": (("var_list",), "creates the velocities"),
    "_distributed_apply": (
        ("distribution", "grads_and_vars", "apply_state", "name"),
        "updates one variable at a time; layer-wise rates are packed in one update of all variables",
    ),
    "_prepare": (("var_list",), "evaluates the learning rate in the dtype of each variable; here it is float32"),
    "_transform_gradients": (("grads_and_vars",), "clips the gradients, and must not clip CLARS's norms"),
}
# Methods that the layer-wise optimizers call, since the legacy optimizer keeps its hyperparameters behind them.
CALLED_OPTIMIZER_METHODS = (
    "_decayed_lr",
    "_distribution_strategy_scope",
    "_serialize_hyperparameter",
    "_set_hyper",
)


def averaged_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer inside Model Garden's `ExponentialMovingAverage`; None for other optimizers.

    `_optimizer`: the wrapper has no public name for it.
    """
    return getattr(optimizer, "_optimizer", None)


def save_with_optimizer(optimizer: Any, state: tf.Module, name: str) -> None:
    """Makes a checkpoint of an optimizer hold this state too.

    `_track_trackable`: an attribute of that name would do, but a loss-scaling optimizer hands attributes on to the
    optimizer inside it.
    """
    optimizer._track_trackable(state, name=name)
