"""One forward and backward pass that gives the gradient and every example's share of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.registry import Registry, check_supported
from tf_largebatch.norms.shapes import Size
from tf_largebatch.norms.tap import (
    Tap,
    Use,
    Variable,
    added_squared_norms,
    sum_squares_per_example,
    variable_path,
)

Gradient = tf.Tensor | tf.IndexedSlices | None


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
        return [None if sq is None else scale * tf.reduce_sum(tf.sqrt(sq)) for sq in self.squared_norms]


def measure(
    model: Any,
    forward: Callable[[], Any],
    loss: Callable[[Any], tf.Tensor],
    variables: Sequence[Variable],
    batch_size: Size,
    registry: Registry,
    examples: int | None = None,
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

    Returns:
        The model's output and the measurement.

    Raises:
        ValueError: if a layer has no rule, or a variable is used elsewhere than in the layer that owns it.
    """
    layers = check_supported(model, registry)
    with tf.GradientTape() as tape:
        tap = Tap(tape, batch_size)
        with tapped(layers, registry, tap):
            output = forward()
        _refuse_unrecorded_uses(tape, variables)
        target = loss(output)
    return output, _split(tape, tap, target, variables, examples)


@contextlib.contextmanager
def tapped(layers: Sequence[Any], registry: Registry, tap: Tap) -> Iterator[None]:
    """Within it the layers compute by their rules, which record with the tap; afterwards they are as they were."""

    def tapped_call(layer: Any) -> Callable[..., Any]:
        rule = registry.rule_for(layer)

        def call(*args: Any, **kwargs: Any) -> Any:
            tap.enter_layer(getattr(layer, "path", layer.name))
            return rule(layer, tap, *args, **kwargs)

        return call

    try:
        for layer in layers:
            # Past Keras's tracking: this is no state of the layer.
            object.__setattr__(layer, "call", tapped_call(layer))
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


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
    return {id(value), *(id(component) for component in getattr(value, "values", ()))}


def _split(
    tape: tf.GradientTape, tap: Tap, target: tf.Tensor, variables: Sequence[Variable], examples: int | None
) -> Measurement:
    """Differentiates the target at every recorded tensor and assembles the measurement."""
    uses = tap.uses
    copies = {id(use.copy): use.copy for use in uses}
    d_outputs, d_copies, d_variables = tape.gradient(
        target, ([use.output for use in uses], list(copies.values()), [_readable(v) for v in variables])
    )
    d_copy = dict(zip(copies, d_copies, strict=True))
    uses_of: dict[int, list[tuple[Use, tf.Tensor]]] = {}
    for use, d in zip(uses, d_outputs, strict=True):
        if d is not None:  # None: the loss does not depend on this use
            uses_of.setdefault(id(use.variable), []).append((use, tf.convert_to_tensor(d)))

    measured, window = _window(tap.batch_size, examples)
    gradients, squared_norms = [], []
    for variable, unmeasured in zip(variables, d_variables, strict=True):
        used = uses_of.get(id(variable), [])
        shares, squares = _shares_and_norms(used, d_copy, window)
        shares = shares if unmeasured is None else [*shares, unmeasured]
        gradients.append(_add(shares, variable.dtype))
        squared_norms.append(squares)
    return Measurement(gradients, squared_norms, measured, tap.batch_size)


def _shares_and_norms(
    used: list[tuple[Use, tf.Tensor]], d_copy: dict[int, Gradient], window: slice | None
) -> tuple[list[Gradient], tf.Tensor | None]:
    """The shares of one variable's gradient that its uses make, and `||G_i||^2` of the examples in the window."""
    if not used:
        return [], None
    examples = slice(None) if window is None else window
    if len(used) == 1:
        use, d = used[0]
        if use.contraction is None:
            return [tf.reduce_sum(d, axis=0)], sum_squares_per_example(d[examples])
        together = use.contraction.norms_and_gradient(d) if window is None else None
        if together is not None:
            squares, share = together
            return [share], squares
        return [d_copy[id(use.copy)]], use.contraction.squared_norms(d, examples)
    shares = {id(use.copy): d_copy[id(use.copy)] for use, _ in used}
    return list(shares.values()), added_squared_norms(used, examples)


def _window(batch_size: Size, examples: int | None) -> tuple[Size, slice | None]:
    """How many examples are measured and which: the first ones; None for all."""
    if examples is None:
        return batch_size, None
    if isinstance(batch_size, int):
        return (batch_size, None) if examples >= batch_size else (examples, slice(0, examples))
    measured = tf.minimum(examples, batch_size)
    return measured, slice(0, measured)


def _add(shares: list[Gradient], dtype: Any) -> Gradient:
    """The sum of the shares in the variable's dtype; sparse only if there is one share and it is."""
    if not shares:
        return None
    if len(shares) == 1:
        return tf.cast(shares[0], dtype)
    return tf.add_n([tf.cast(tf.convert_to_tensor(share), dtype) for share in shares])


def _readable(variable: Variable) -> Any:
    """What a gradient tape takes for a variable."""
    return variable if isinstance(variable, tf.Variable) else variable.value
