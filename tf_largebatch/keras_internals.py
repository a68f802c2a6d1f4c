"""Every private attribute or method of Keras and tf.distribute that this package relies on, sorted by topic.

Each has its reason here and a test in tests/test_keras_internals.py that fails when a new version changes it.
"""

from __future__ import annotations

from typing import Any

import keras

# Layers.


def layers_within(model: Any) -> list[Any]:
    """Returns a model and the layers in it, at any depth of nesting, those inside wrappers and layers included.

    `_flatten_layers`: the public `layers` stops at nested models and sees no layer inside another one.
    """
    return list(model._flatten_layers())


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


# Strategies.


def leave_strategy(graph: Any) -> None:
    """Makes a graph under construction one that no strategy knows: its operations belong to no replica.

    `_distribution_strategy_stack`: the structure check of per-example norms traces a forward pass on one replica alone,
    in which a synchronized batch normalization would wait for the other replicas.
    """
    graph._distribution_strategy_stack = []


# Optimizers. `apply` calls these methods one after the other; Keras offers no public one between the gradients and the
# variables of a single tensor. The layer-wise optimizers override them, by name and with these parameters.
OVERRIDDEN_OPTIMIZER_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "_backend_apply_gradients": (
        ("grads", "trainable_variables"),
        "gets gradients that are unscaled but not yet clipped, averaged and reduced: CLARS packs its norms here",
    ),
    "_backend_increment_gradient_accumulators": (
        ("grads", "acc_grads"),
        "CLARS's norms are accumulated over micro-batches with the gradients",
    ),
    "_backend_reset_gradient_accumulators": ((), "and start anew with them"),
    "_backend_update_step": (
        ("grads", "trainable_variables", "learning_rate"),
        "sums the gradients over the replicas: CLARS's norms are one more pair",
    ),
    "_distributed_tf_update_step": (
        ("distribution", "grads_and_vars", "learning_rate"),
        "updates one variable at a time; layer-wise rates are packed in one update of all variables",
    ),
}


def variable_index(optimizer: Any, variable: Any) -> int | None:
    """Returns the number of a variable among those that a Keras optimizer was built with; None for another variable.

    `_var_key`, `_trainable_variables_indices`: Keras's own `_get_variable_index` raises a KeyError without a name.
    """
    return optimizer._trainable_variables_indices.get(optimizer._var_key(variable))


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
