"""The slow, obviously right reference for per-example gradient norms. It knows no layer and uses no rule."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch import keras_internals
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.norms.per_example import as_loss, as_tensors, check_built, number_of_examples, undivided
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.norms.rules.generic import in_mode
from tf_largebatch.norms.state import restored, state_of
from tf_largebatch.norms.view import view


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

    The reference checks itself. A layer that is run alone must give what it gave in the model, each layer's outputs
    must have one row more when the batch has one example more, and the contributions of all examples must add up to
    the gradient.

    Raises:
        ValueError: if one of these checks fails; the message names the layer or variable.
    """
    check_built(model)
    x, y = as_tensors(x), as_tensors(y)
    batch_size = number_of_examples(x)
    loss_object = as_loss(loss)
    variables = model.trainable_variables
    state = state_of(model)
    contributions: dict[tuple[int, int], Any] = {}
    with restored(state):
        with restored(state), _without_states_of_a_fixed_batch(model):
            one_more, _ = _run(model, _with_first_repeated(x), training, state, None)
        calls, (value, tape) = _run(
            model, x, training, state, lambda y_pred: loss_object(y, y_pred, sample_weight=sample_weight)
        )
        d_calls, gradients = tape.gradient(
            value, ([call.floats for call in calls], [v.value for v in variables]), unconnected_gradients="none"
        )
        total: dict[int, Any] = {}
        for position, (call, d) in enumerate(zip(calls, d_calls, strict=True)):
            if all(part is None for part in d):
                continue
            _check_rows(call, one_more[position] if position < len(one_more) else None, batch_size)
            for variable, share in call.gradients(d, check=True):
                total[id(variable)] = total.get(id(variable), 0.0) + share
            for i in range(batch_size) if examples is None else examples:
                for variable, share in call.gradients([None if part is None else part * _row(i, part) for part in d]):
                    key = i, id(variable)
                    contributions[key] = contributions.get(key, 0.0) + share
    undo = undivided(loss_object, batch_size, sample_weight)
    shown = range(batch_size) if examples is None else examples
    norms: dict[str, tf.Tensor] = {}
    for label, v, gradient in zip(variable_labels(variables), variables, gradients, strict=True):
        of_examples = [tf.norm(contributions.get((i, id(v)), tf.zeros(v.shape))) for i in shown]
        _check_total(label, total.get(id(v)), gradient, of_examples)
        if id(v) in total:
            norms[label] = undo * tf.stack(of_examples)
    return norms


@dataclasses.dataclass
class _Call:
    """One call of a layer with variables of its own, to be repeated alone.

    `layer` is a view of the layer as it was before the call, with the dropout masks that it may have kept.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool | None
    state: list[tuple[Any, tf.Tensor]]  # what variables that are not trained held before the call
    outputs: Any

    @property
    def floats(self) -> list[tf.Tensor]:
        """The floating-point outputs."""
        return _floats(self.outputs)

    def gradients(self, d: Sequence[Any], check: bool = False) -> list[tuple[Any, tf.Tensor]]:
        """The gradients of the layer's own variables against `d` at its outputs, float32, where there are any."""
        own = own_trainable_variables(self.layer)
        for variable, value in self.state:
            variable.assign(value)
        with tf.GradientTape() as tape:
            outputs = _floats(in_mode(self.training, lambda: self.layer(*self.args, **self.kwargs)))
        for found, expected in zip(outputs, self.floats, strict=True):
            if check:
                self._check_same(found, expected)
        used = [(y, tf.cast(part, y.dtype)) for y, part in zip(outputs, d, strict=True) if part is not None]
        shares = tape.gradient(
            [y for y, _ in used], [v.value for v in own], output_gradients=[part for _, part in used]
        )
        return [
            (v, tf.cast(tf.convert_to_tensor(share), tf.float32))
            for v, share in zip(own, shares, strict=True)
            if share is not None
        ]

    def _check_same(self, found: tf.Tensor, expected: tf.Tensor) -> None:
        tolerance = {tf.float16: 1e-2, tf.bfloat16: 5e-2}.get(expected.dtype, 1e-5)
        found, expected = tf.cast(found, tf.float32), tf.cast(expected, tf.float32)
        differs = tf.reduce_any(tf.abs(found - expected) > tolerance * (1e-6 + tf.reduce_max(tf.abs(expected))))
        if bool(differs):
            raise ValueError(
                f"The brute-force reference cannot repeat layer {self.layer.path!r}: alone it gives something else "
                "than in the model, as a layer does that draws random numbers without a seed of its own."
            )


def _run(model: Any, x: Any, training: bool, state: list[Any], loss: Callable[[Any], tf.Tensor] | None) -> Any:
    """The calls of the model's layers with variables of their own; with a loss also its value and the tape."""
    layers = [layer for layer in model._flatten_layers() if own_trainable_variables(layer)]
    calls: list[_Call] = []

    def recording(layer: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Stateful recurrent layers hand on their state as the variable, which changes at the end of their call.
            args, kwargs = keras.tree.map_structure(_present_value, (args, kwargs))
            before = [(v, tf.identity(tf.convert_to_tensor(v))) for v in state]
            as_it_was = view(layer)
            vars(as_it_was).pop("call", None)
            outputs = keras.tree.map_structure(_identity, type(layer).call(layer, *args, **kwargs))
            if any(not hasattr(t, "numpy") for t in _floats(outputs)):
                raise ValueError(
                    f"The brute-force reference cannot repeat layer {layer.path!r}, which runs inside a tf.function or "
                    "loop of its own."
                )
            mode = keras_internals.training_of_the_call(layer)
            calls.append(_Call(as_it_was, args, kwargs, mode, before, outputs))
            return outputs

        return call

    with tf.GradientTape() as tape:
        try:
            for layer in layers:
                object.__setattr__(layer, "call", recording(layer))
            y_pred = model(x, training=training)
        finally:
            for layer in layers:
                vars(layer).pop("call", None)
        value = None if loss is None else loss(y_pred)
    return calls, (value, tape)


def _check_rows(call: _Call, with_one_more: _Call | None, batch_size: int) -> None:
    """Raises unless every output has one row for each example, whatever their number."""
    rows = [t.shape[0] if t.shape.rank else None for t in call.floats]
    more = None if with_one_more is None else [t.shape[0] if t.shape.rank else None for t in with_one_more.floats]
    if any(n != batch_size for n in rows) or more is None or any(n != batch_size + 1 for n in more):
        raise ValueError(
            "The brute-force reference needs the examples on axis 0 of every layer's output; layer "
            f"{call.layer.path!r} has {rows} rows for {batch_size} examples, and {more} for {batch_size + 1}."
        )


def _check_total(label: str, total: Any, gradient: Any, of_examples: Sequence[tf.Tensor]) -> None:
    """Raises unless the contributions add up to the gradient."""
    dtype = tf.float32 if gradient is None else gradient.dtype
    found = 0.0 if total is None else total
    expected = 0.0 if gradient is None else tf.cast(tf.convert_to_tensor(gradient), tf.float32)
    scale = tf.reduce_max(tf.abs(expected)) + tf.reduce_max(tf.stack([0.0, *of_examples]))
    half = keras.config.dtype_policy().compute_dtype != "float32" or dtype != tf.float32
    if bool(tf.reduce_max(tf.abs(found - expected)) > (5e-2 if half else 1e-4) * scale + 1e-6):
        raise ValueError(
            f"The brute-force reference cannot split the gradient of {label!r}: it comes not only through the outputs "
            "of the layer that owns the variable."
        )


@contextlib.contextmanager
def _without_states_of_a_fixed_batch(model: Any) -> Iterator[None]:
    """Within it stateful recurrent layers start anew, with as many states as there are examples."""
    stateful = [layer for layer in model._flatten_layers() if hasattr(layer, "cell") and layer.stateful]
    try:
        for layer in stateful:
            object.__setattr__(layer, "stateful", False)
        yield
    finally:
        for layer in stateful:
            object.__setattr__(layer, "stateful", True)


def _with_first_repeated(batch: Any) -> Any:
    """A batch with its first example once more."""

    def repeated(t: Any) -> Any:
        if t is None:
            return t
        if isinstance(t, tf.SparseTensor):
            first = tf.sparse.slice(t, [0] * t.shape.rank, [1, *t.shape[1:]])
            return tf.sparse.concat(0, [t, first])
        return tf.concat([t, t[:1]], axis=0)

    return keras.tree.map_structure(repeated, batch)


def _floats(outputs: Any) -> list[tf.Tensor]:
    return [t for t in keras.tree.flatten(outputs) if tf.is_tensor(t) and t.dtype.is_floating]


def _present_value(t: Any) -> Any:
    """The value now, where t is a variable."""
    return tf.identity(tf.convert_to_tensor(t)) if isinstance(t, (tf.Variable, keras.Variable)) else t


def _identity(t: Any) -> Any:
    """The tensor again, with the mask that Keras keeps at it; None stays."""
    if not isinstance(t, tf.Tensor):
        return t
    copy = tf.identity(t)
    if hasattr(t, "_keras_mask"):
        copy._keras_mask = t._keras_mask
    return copy


def _row(i: int, t: tf.Tensor) -> tf.Tensor:
    """One for example i, zero for the others, ready to multiply t with."""
    row = tf.one_hot(i, t.shape[0], dtype=t.dtype)
    return tf.reshape(row, [-1] + [1] * (t.shape.rank - 1))
