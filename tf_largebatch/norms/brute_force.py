"""The slow, obviously right reference for per-example gradient norms. It knows no layer and uses no rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core.paths import variable_path
from tf_largebatch.norms.per_example import as_loss, undivided
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.norms.state import restored, state_of


def brute_force_gradient_norms(
    model: keras.Model,
    x: Any,
    y: Any,
    loss: str | keras.losses.Loss | Callable[[Any, Any], Any],
    sample_weight: Any = None,
    training: bool = True,
    examples: Sequence[int] | None = None,
) -> dict[str, tf.Tensor]:
    """As `per_example_gradient_norms`, example by example and layer by layer; of these `examples` or of all.

    One backward pass gives `d`, the gradient of the loss at every layer's outputs. Then, for each example i and each
    layer, the layer alone is differentiated with respect to its own variables against `d` with every other example's
    rows set to zero: that is `G_i`. It takes B backward passes through every layer.
    """
    x, y = (keras.tree.map_structure(tf.convert_to_tensor, t) for t in (x, y))
    batch_size = int(keras.tree.flatten(x)[0].shape[0])
    loss_object = as_loss(loss)
    layers = [layer for layer in model._flatten_layers() if own_trainable_variables(layer)]
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def recording(layer: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Stateful recurrent layers hand on their state as the variable, which changes at the end of their call.
            args, kwargs = keras.tree.map_structure(_present_value, (args, kwargs))
            outputs = keras.tree.map_structure(_identity, type(layer).call(layer, *args, **kwargs))
            calls.append((layer, args, kwargs, outputs))
            return outputs

        return call

    with restored(state_of(model)):
        with tf.GradientTape() as tape:
            try:
                for layer in layers:
                    object.__setattr__(layer, "call", recording(layer))
                y_pred = model(x, training=training)
            finally:
                for layer in layers:
                    vars(layer).pop("call", None)
            value = loss_object(y, y_pred, sample_weight=sample_weight)
        d_outputs = tape.gradient(value, [keras.tree.flatten(outputs) for *_, outputs in calls])

        variables = model.trainable_variables
        norms: dict[str, list[tf.Tensor]] = {}
        for i in range(batch_size) if examples is None else examples:
            contributions: dict[int, tf.Tensor] = {}
            for (layer, args, kwargs, _), d in zip(calls, d_outputs, strict=True):
                if all(part is None for part in d):
                    continue
                own = own_trainable_variables(layer)
                with tf.GradientTape() as layer_tape:
                    outputs = keras.tree.flatten(layer(*args, **kwargs))
                used = [(y, part * _row(i, part)) for y, part in zip(outputs, d, strict=True) if part is not None]
                # Under mixed precision Keras computes ReversibleEmbedding in another dtype when it is called alone.
                targets, only_i = zip(*((y, tf.cast(part, y.dtype)) for y, part in used), strict=True)
                shares = layer_tape.gradient(targets, [v.value for v in own], output_gradients=only_i)
                for variable, share in zip(own, shares, strict=True):
                    if share is not None:
                        share = tf.cast(tf.convert_to_tensor(share), tf.float32)
                        contributions[id(variable)] = contributions.get(id(variable), 0.0) + share
            for variable in variables:
                if id(variable) in contributions:
                    norm = tf.norm(contributions[id(variable)])
                    norms.setdefault(variable_path(variable), []).append(norm)
    undo = undivided(loss_object, batch_size, sample_weight)
    return {path: undo * tf.stack(values) for path, values in norms.items()}


def _present_value(t: Any) -> Any:
    """The value now, where t is a variable."""
    return tf.identity(tf.convert_to_tensor(t)) if isinstance(t, (tf.Variable, keras.Variable)) else t


def _identity(t: tf.Tensor) -> tf.Tensor:
    """The tensor again, with the mask that Keras keeps at it."""
    copy = tf.identity(t)
    if hasattr(t, "_keras_mask"):
        copy._keras_mask = t._keras_mask
    return copy


def _row(i: int, t: tf.Tensor) -> tf.Tensor:
    """One for example i, zero for the others, ready to multiply t with."""
    row = tf.one_hot(i, t.shape[0], dtype=t.dtype)
    return tf.reshape(row, [-1] + [1] * (t.shape.rank - 1))
