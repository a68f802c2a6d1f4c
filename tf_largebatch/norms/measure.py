"""One forward and backward pass that gives the gradient and every example's share of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tf_largebatch.core.paths import variable_path
from tf_largebatch.norms.backward import Backward
from tf_largebatch.norms.intercept import recording
from tf_largebatch.norms.recorder import Recorder, Use, Variable
from tf_largebatch.norms.registry import Registry, check_supported
from tf_largebatch.norms.shapes import Size
from tf_largebatch.norms.uses import measure_uses

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Gradients of a loss and the norms of the examples' contributions to them.

    Attributes:
        gradients: for each variable its gradient, None where the loss does not depend on it.
        squared_norms: for each variable `||G_i||^2` of the measured examples, float32, shape [b]; None likewise.
        measured: how many examples were measured, b.
        batch_size: how many there are, B.
    """

    gradients: list[Gradient]
    squared_norms: list[tf.Tensor | None]
    measured: Size
    batch_size: Size

    def norm_sums(self) -> list[tf.Tensor | None]:
        """`(B / b) sum_i ||G_i||` over the measured examples, float32 scalars: `s_k` of a mean loss.

        Exact when all examples are measured; else the unbiased estimate from a sample of them.
        """
        if isinstance(self.measured, int) and isinstance(self.batch_size, int):
            scale = self.batch_size / self.measured
        else:
            scale = tf.cast(self.batch_size, tf.float32) / tf.cast(self.measured, tf.float32)
        known = [squares for squares in self.squared_norms if squares is not None]
        if not known:
            return [None for _ in self.squared_norms]
        # All at once: a few operations for each of hundreds of tensors are megabytes of graph.
        sums = iter(tf.unstack(scale * tf.reduce_sum(tf.sqrt(tf.stack(known)), axis=1), num=len(known)))
        return [None if squares is None else next(sums) for squares in self.squared_norms]


def measure(
    model: Any,
    forward: Callable[[], Any],
    loss: Callable[[Any], tf.Tensor],
    variables: Sequence[Variable],
    batch_size: Size,
    registry: Registry,
    examples: int | None = None,
    replacements: Mapping[Any, Any] | None = None,
) -> tuple[Any, Measurement]:
    """Runs the model forward, differentiates the loss, and splits the gradient among the examples.

    Args:
        model: the model that `forward` calls.
        forward: computes the model's output.
        loss: the scalar to differentiate, of that output; it may read variables (weight regularisers), which counts
            for the gradient and not for the examples.
        variables: the trainable variables.
        batch_size: number of examples B.
        registry: the layer rules.
        examples: how many examples to measure, the first ones; None for all.
        replacements: for layers of the model another one each, whose rule and variables compute this pass in their
            place: the adversarial batch normalisations of split batch norm. A replacement sees the input, mask and
            training mode of the layer it stands for.

    Returns:
        The model's output and the measurement.

    Raises:
        ValueError: if a layer has no rule, a variable is used elsewhere than in the layer that owns it, or a
            replacement is not built or stands for no layer of the model.
    """
    layers = check_supported(model, registry)
    if replacements:
        replacing = _check_substitutes(model, replacements, registry)
        layers = list({id(layer): layer for layer in (*layers, *replacing)}.values())
    with tf.GradientTape() as tape:
        recorder = Recorder(tape, batch_size)
        with recording(layers, registry, recorder, replacements):
            output = forward()
        _refuse_unrecorded_uses(tape, variables)
        target = loss(output)
    return output, _split(tape, recorder, target, variables, examples)


def _check_substitutes(model: Any, replacements: Mapping[Any, Any], registry: Registry) -> list[Any]:
    """The layers to measure in the replacements.

    Raises:
        ValueError: if a layer to be substituted is not the model's own or has its rule run by another layer's, a
            replacement is not built, or has no rule.
    """
    layers = {id(layer) for layer in model._flatten_layers()}
    covered = {id(sub) for layer in model._flatten_layers() for sub in registry.covered(layer)}
    found: dict[int, Any] = {}
    for layer, replacement in replacements.items():
        if id(layer) not in layers or id(layer) in covered:
            raise ValueError(
                f"replacements has {layer.name!r}, which is no layer of {model.name!r} that is called by itself: "
                "pass layers of the model."
            )
        if not replacement.built:
            raise ValueError(
                f"replacements has {replacement.name!r} in place of {layer.name!r}, which is not built: build it with "
                "the same input shape."
            )
        found.update((id(inner), inner) for inner in check_supported(replacement, registry))
    return list(found.values())


def _refuse_unrecorded_uses(tape: tf.GradientTape, variables: Sequence[Variable]) -> None:
    """Rules read variables behind the tape's back, so a trainable variable that it saw was used by no rule."""
    seen = {id(v) for v in tape.watched_variables()}
    refused = [variable_path(v) for v in variables if seen & _identities(v)]
    if refused:
        raise ValueError(
            "Per-example gradient norms are not available: these variables are used elsewhere than in the layer "
            f"that owns them, where their use cannot be measured: {', '.join(refused)}. Use them through their layer "
            "or train with gradient_norms='replica'."
        )


def _identities(variable: Variable) -> set[int]:
    """Identities of the tf.Variables behind a variable: itself and, under tf.distribute, its components."""
    value = variable if isinstance(variable, tf.Variable) else variable.value
    # In tf_keras mixed precision wraps a variable in one that casts.
    value = getattr(value, "_variable", value)
    return {id(value), *(id(component) for component in getattr(value, "values", ()))}


def _split(
    tape: tf.GradientTape, recorder: Recorder, target: tf.Tensor, variables: Sequence[Variable], examples: int | None
) -> Measurement:
    """Differentiates the target at every recorded tensor and assembles the measurement."""
    uses = recorder.uses
    measured, window = _window(recorder.batch_size, examples)
    recorder.on_gradient = backward = Backward(uses, window)
    copies = {id(use.copy): use.copy for use in uses if use.contraction is not None}
    d_outputs, d_copies, d_variables = tape.gradient(
        target, ([use.output for use in uses], list(copies.values()), [_readable(v) for v in variables])
    )
    d_copy = dict(zip(copies, d_copies, strict=True))
    uses_of: dict[int, list[Use]] = {}
    for use, d in zip(uses, d_outputs, strict=True):
        if d is not None:  # None: the loss does not depend on this use
            backward.d.setdefault(use.number, tf.convert_to_tensor(d))
            uses_of.setdefault(id(use.variable), []).append(use)

    gradients, squared_norms = [], []
    for variable, unmeasured in zip(variables, d_variables, strict=True):
        shares, squares = _shares_and_norms(uses_of.get(id(variable), []), backward, d_copy)
        shares = shares if unmeasured is None else [*shares, unmeasured]
        gradients.append(_add(shares, variable.dtype))
        squared_norms.append(squares)
    return Measurement(gradients, squared_norms, measured, recorder.batch_size)


def _shares_and_norms(
    used: list[Use], backward: Backward, d_copy: dict[int, Gradient]
) -> tuple[list[Gradient], tf.Tensor | None]:
    """The shares of one variable's gradient that its uses make, and `||G_i||^2` of the measured examples."""
    if not used:
        return [], None
    together = backward.together.get(id(used[0].variable))
    if together is None:  # a use that the gradient does not reach, or a variable repeated for each example
        together = measure_uses([(use, backward.d[use.number]) for use in used], backward.window)
    ordinary = {id(use.copy): use for use in used if id(use.copy) not in together.replaced}
    shares = [
        tf.reduce_sum(backward.d[use.number], axis=0) if use.contraction is None else d_copy[copy]
        for copy, use in ordinary.items()
    ]
    return [*together.gradients, *shares], together.squares


def _window(batch_size: Size, examples: int | None) -> tuple[Size, slice | None]:
    """How many examples are measured and which: the first ones; None for all."""
    if examples is None:
        return batch_size, None
    if isinstance(batch_size, int):
        return (batch_size, None) if examples >= batch_size else (examples, slice(0, examples))
    measured = tf.minimum(examples, batch_size)
    return measured, slice(0, measured)


def _add(shares: list[Gradient], dtype: Any) -> Gradient:
    """The sum of the shares in the variable's dtype; sparse if all of them are."""
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
    """What a gradient tape takes for a variable."""
    return variable if isinstance(variable, tf.Variable) else variable.value
