"""The measuring pass on TensorFlow: a gradient tape, differentiated at every tensor that a rule records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_largebatch.backend.tensorflow import weight_terms
from tf_largebatch.backend.tensorflow.backward import Backward
from tf_largebatch.backend.tensorflow.broadcast import Met, follow, repeating
from tf_largebatch.backend.tensorflow.recorder import Recorder
from tf_largebatch.backend.tensorflow.structure import structure_of
from tf_largebatch.core.paths import variable_path
from tf_largebatch.keras_internals import without_autocast
from tf_largebatch.norms.intercept import recording_checked_calls
from tf_largebatch.norms.measurement import Measurement
from tf_largebatch.norms.recorder import (
    Structure,
    Use,
    Variable,
    broadcast_message,
    unexplained_message,
    unrecorded_use_message,
)
from tf_largebatch.norms.registry import Registry
from tf_largebatch.norms.shapes import Size
from tf_largebatch.norms.uses import measure_uses

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None


def measuring_pass(
    model: Any,
    layers: Sequence[Any],
    forward: Callable[[], Any],
    loss: Callable[[Any], tf.Tensor],
    scale: Callable[[Any], Any],
    variables: Sequence[Variable],
    batch_size: Size,
    registry: Registry,
    examples: int | None,
    replacements: Mapping[Any, Any],
) -> tuple[Any, Measurement]:
    """Runs the pass of `norms.measure`, on a gradient tape; `layers` are those that are measured."""

    def refuse_unrecorded_uses(tape: tf.GradientTape) -> None:
        """Rules read variables behind the tape's back, so a trainable variable that it saw was used by no rule."""
        used = _seen(tape, variables)
        if used:
            raise ValueError(unrecorded_use_message([variable_path(v) for v in used]))

    with tf.GradientTape() as tape:
        recorder = Recorder(tape, batch_size)

        def structure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Structure:
            with recorder.unseen():
                return structure_of(
                    model, layers, registry, replacements, refuse_unrecorded_uses, batch_size, args, kwargs
                )

        with recording_checked_calls(model, layers, registry, recorder, replacements, structure):
            output = forward()
        refuse_unrecorded_uses(tape)
        unscaled = loss(output)
        target = scale(unscaled)
    in_loss = _seen(tape, variables)
    if in_loss and tf.executing_eagerly():
        native = [_readable(v) for v in in_loss]
        _refuse_in_loss(in_loss, weight_terms.example_dependent(lambda y: scale(loss(y)), output, native))
        in_loss = []
    results = tf.nest.flatten(output, expand_composites=True)
    of_examples = [t for t in results if isinstance(t, tf.Tensor)]
    measurement = _split(tape, recorder, target, variables, examples, in_loss, of_examples)
    return output, dataclasses.replace(measurement, loss=unscaled)


def _seen(tape: tf.GradientTape, variables: Sequence[Variable]) -> list[Variable]:
    """Returns the variables whose reads the tape has recorded."""
    seen = {id(v) for v in tape.watched_variables()}
    return [v for v in variables if seen & _identities(v)]


def _refuse_in_loss(variables: Sequence[Variable], by_examples: Sequence[bool]) -> None:
    """Raises if the loss uses one of the variables that it reads otherwise than in a term of weights alone."""
    refused = [variable_path(v) for v, used in zip(variables, by_examples, strict=True) if used]
    if refused:
        raise ValueError(unrecorded_use_message(refused))


def _identities(variable: Variable) -> set[int]:
    """Identities of the tf.Variables behind a variable: itself and, under tf.distribute, its components."""
    value = without_autocast(variable if isinstance(variable, tf.Variable) else variable.value)
    return {id(value), *(id(component) for component in getattr(value, "values", ()))}


def _split(
    tape: tf.GradientTape,
    recorder: Recorder,
    target: tf.Tensor,
    variables: Sequence[Variable],
    examples: int | None,
    in_loss: Sequence[Variable],
    of_examples: Sequence[tf.Tensor],
) -> Measurement:
    """Differentiates the target at every recorded tensor and assembles the measurement."""
    uses, elsewhere = _met(recorder)
    measured, window = _window(recorder.batch_size, examples)
    recorder.on_gradient = backward = Backward(uses, window)
    private_values = {id(use.private_value): use.private_value for use in uses if use.contraction is not None}
    d_outputs, d_private_values, d_variables, d_inner, d_elsewhere = tape.gradient(
        target,
        (
            [use.output for use in uses],
            list(private_values.values()),
            [_readable(v) for v in variables],
            recorder.inner_gradients.begin_backward(),
            [t for _, t in elsewhere],
        ),
    )
    recorder.inner_gradients.check(d_inner)
    lost = [layer for (layer, _), d in zip(elsewhere, d_elsewhere, strict=True) if d is not None]
    if lost:
        raise ValueError(broadcast_message(lost))
    at = {id(v): d for v, d in zip(variables, d_variables, strict=True)}
    of_examples = [*of_examples, *(use.output for use in uses)]
    _refuse_in_loss(
        in_loss,
        [at[id(v)] is not None and weight_terms.depends_on_examples(at[id(v)], of_examples) for v in in_loss],
    )
    d_private_value = dict(zip(private_values, d_private_values, strict=True))
    _check_explained(uses, d_outputs, d_private_value)
    uses_of: dict[int, list[Use]] = {}
    for use, d in zip(uses, d_outputs, strict=True):
        if d is not None:  # None: the loss does not depend on this use
            backward.d.setdefault(use.number, tf.convert_to_tensor(d))
            uses_of.setdefault(id(use.variable), []).append(use)

    gradients, squared_norms = [], []
    for variable, unmeasured in zip(variables, d_variables, strict=True):
        shares, squares = _shares_and_norms(uses_of.get(id(variable), []), backward, d_private_value)
        shares = shares if unmeasured is None else [*shares, unmeasured]
        gradients.append(_add(shares, variable.dtype))
        squared_norms.append(squares)
    return Measurement(gradients, squared_norms, measured, recorder.batch_size)


def _check_explained(uses: Sequence[Use], d_outputs: Sequence[Any], d_private_value: Mapping[int, Any]) -> None:
    """Raises if the loss depends on a private value otherwise than through the tensors recorded for it."""
    explained = {id(use.private_value) for use, d in zip(uses, d_outputs, strict=True) if d is not None}
    lost = {
        id(use.private_value): use
        for use in uses
        if use.contraction is not None and id(use.private_value) not in explained
    }
    refused = [variable_path(use.variable) for key, use in lost.items() if d_private_value[key] is not None]
    if refused:
        raise ValueError(unexplained_message(refused))


def _met(recorder: Recorder) -> tuple[list[Use], list[tuple[str, tf.Tensor]]]:
    """Returns the uses, those without a batch axis seen where they meet the batch.

    Returns also the tensors that are made of these besides.

    These tensors come with the path of the variable.
    """
    uses = [use for use in recorder.uses if use.broadcast is None]
    elsewhere: list[tuple[str, tf.Tensor]] = []
    number = len(recorder.uses)
    for use in recorder.uses:
        if use.broadcast is None:
            continue
        followed = follow(use.output, repeating(use.broadcast), recorder.inner_gradients.guards)
        for meeting in followed.meetings:
            contraction = Met(use.contraction, meeting.derivative)
            uses.append(dataclasses.replace(use, output=meeting.output, contraction=contraction, number=number))
            number += 1
        elsewhere += [(variable_path(use.variable), t) for t in followed.elsewhere]
    return uses, elsewhere


def _shares_and_norms(
    used: list[Use], backward: Backward, d_private_value: dict[int, Gradient]
) -> tuple[list[Gradient], tf.Tensor | None]:
    """Returns the shares of one variable's gradient that its uses make, and `||G_i||^2` of the measured examples."""
    if not used:
        return [], None
    together = backward.together.get(id(used[0].variable))
    if together is None:  # a use that the gradient does not reach, or a variable repeated for each example
        together = measure_uses([(use, backward.d[use.number]) for use in used], backward.window)
    ordinary = {id(use.private_value): use for use in used if id(use.private_value) not in together.replaced}
    shares = [
        tf.reduce_sum(backward.d[use.number], axis=0) if use.contraction is None else d_private_value[private_value]
        for private_value, use in ordinary.items()
    ]
    return [*together.gradients, *shares], together.squares


def _window(batch_size: Size, examples: int | None) -> tuple[Size, slice | None]:
    """Returns how many examples are measured and which: the first ones; None for all."""
    if examples is None:
        return batch_size, None
    if isinstance(batch_size, int):
        return (batch_size, None) if examples >= batch_size else (examples, slice(0, examples))
    measured = tf.minimum(examples, batch_size)
    return measured, slice(0, measured)


def _add(shares: list[Gradient], dtype: Any) -> Gradient:
    """Returns the sum of the shares in the variable's dtype; sparse if all of them are."""
    if not shares:
        return None
    if len(shares) == 1:
        return tf.cast(shares[0], dtype)
    sparse = [share for share in shares if isinstance(share, tf.IndexedSlices)]
    if len(sparse) == len(shares):
        values = tf.concat([tf.cast(share.values, dtype) for share in sparse], axis=0)
        indices = tf.concat([tf.cast(share.indices, tf.int64) for share in sparse], axis=0)
        return tf.IndexedSlices(values, indices, sparse[0].dense_shape)
    return tf.add_n([tf.cast(tf.convert_to_tensor(share), dtype) for share in shares])


def _readable(variable: Variable) -> Any:
    """Returns what a gradient tape takes for a variable."""
    return variable if isinstance(variable, tf.Variable) else variable.value
