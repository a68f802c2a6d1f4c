"""The structure check: which axes are the batch, found before the step by tracing the model with another batch size.

A layer is measured by the rows on axis 0 of its output. That they are the examples cannot be told by their number: a
time-major layer may have as many time steps as there are examples, and a step traced without a batch size knows no
number at all. So the model's forward pass is traced once more, into a graph that is never run, with a batch size that
divides no other axis of inputs and weights. There a first axis is the batch if and only if it has that size, and what
cannot be measured is refused before the first step.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch import keras_internals
from tf_largebatch.backend.tensorflow.broadcast import deciding_by_size, follow
from tf_largebatch.backend.tensorflow.recorder import Recorder
from tf_largebatch.norms.intercept import measured_call, recording
from tf_largebatch.norms.recorder import BatchAxisError, Structure, layer_path, refusal_in
from tf_largebatch.norms.registry import Registry
from tf_largebatch.norms.shapes import Size
from tf_largebatch.norms.state import restored
from tf_largebatch.norms.structure import (
    PRIMES,
    SMALL_PRIMES,
    foreign_prime,
    no_batch_message,
    untraceable_message,
    without_trace,
)

_found: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def structure_of(
    model: Any,
    layers: Sequence[Any],
    registry: Registry,
    replacements: Mapping[Any, Any] | None,
    refuse: Callable[[tf.GradientTape], None],
    batch_size: Size,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Structure:
    """Checks a model that is about to be called, and returns what its rules may ask for.

    Args:
        model: The model.
        layers: The layers that are measured.
        registry: Their rules.
        replacements: For some layers the one that is called in their place.
        refuse: Raises if a tape has seen a variable that it must not see.
        batch_size: Number of examples B.
        args: The arguments of the model's `call`, tensors with the examples on axis 0 and others.
        kwargs: Those by name.

    Raises:
        ValueError: If a layer's first axis is not the batch, or the model cannot be measured for another reason that
            its forward pass shows; if the model works for no other batch size.
    """
    flat = [tf.convert_to_tensor(t) if isinstance(t, np.ndarray) else t for t in tf.nest.flatten((args, kwargs))]
    batched = [i for i, t in enumerate(flat) if _has_batch_axis(t, batch_size)]
    if not batched:
        raise BatchAxisError(no_batch_message(model, flat, batch_size))
    key = (
        tuple((_signature(t), i in batched) for i, t in enumerate(flat)),
        tuple((id(layer), id(registry.rule_for(layer))) for layer in layers),
        tuple((id(a), id(b)) for a, b in (replacements or {}).items()),
    )
    graph = None if tf.executing_eagerly() else weakref.ref(tf.compat.v1.get_default_graph())
    known = _found.setdefault(model, {})
    if key in known and known[key][0] == graph:  # replicas share a graph; another trace may be of a changed model
        return known[key][1]

    def rebuilt(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = list(flat)
        for i, t in zip(batched, tensors, strict=True):
            arguments[i] = t
        return tf.nest.pack_sequence_as((args, kwargs), arguments)

    def check(size: int, tensors: Sequence[Any]) -> Recorder:
        new_args, new_kwargs = rebuilt(tensors)
        with keras.StatelessScope(collect_losses=True) as scope:
            with tf.GradientTape() as tape:
                recorder = Recorder(tape, size, checks_structure=True)
                with recording(layers, registry, recorder, replacements):
                    call = measured_call(model, layers, registry, recorder)
                    outputs = call(*new_args, **new_kwargs)
            refuse(tape)
            results = tf.nest.flatten((outputs, scope.losses), expand_composites=True)
            targets = [t for t in results if _is_float(t)]
            _check_inner_gradients(tape, recorder, targets)
            _decide_broadcasts(recorder, size)
        return recorder

    found = _traced(model, check, [flat[i] for i in batched], batch_size, layers)
    known[key] = graph, found
    return found


def _traced(
    model: Any, check: Callable[..., Recorder], tensors: Sequence[Any], batch_size: Size, layers: Sequence[Any]
) -> Structure:
    """Traces the check with the first batch size, and size for unknown axes, with which that is possible."""
    prime = foreign_prime(PRIMES, tensors, layers)
    divisible = prime * (batch_size if isinstance(batch_size, int) else 960)  # for models that split the batch
    unknown_axes = any(None in t.shape[1:] for t in tensors)
    failed: Exception | None = None
    for fill in (None, 16, 8, 4, 32) if unknown_axes else (None,):
        for size in (prime, divisible):
            try:
                with without_trace(model):
                    recorder = _trace(functools.partial(check, size), [_spec(t, size, fill) for t in tensors])
            except BatchAxisError:
                raise
            except Exception as error:  # whatever a model raises when it is traced with this size
                failed = failed or error
                continue
            if not recorder.rows_are_unknown:
                return recorder.structure
    if failed is None:
        raise BatchAxisError(
            f"Per-example gradient norms are not available: in {layer_path(model)!r} the number of rows of some "
            "layer's output cannot be told from the batch size. Give the inputs static sizes or train with "
            "gradient_norms='replica'."
        )
    refusal = refusal_in(failed)
    if refusal is not None:
        raise refusal
    if tf.executing_eagerly():  # a model that cannot be traced at all
        rows = foreign_prime(SMALL_PRIMES, tensors, layers)
        with without_trace(model), restored(model.variables):
            return check(rows, [_repeated_to(rows, t) for t in tensors]).structure
    raise ValueError(untraceable_message(model, batch_size, failed)) from failed


def _check_inner_gradients(tape: tf.GradientTape, recorder: Recorder, targets: list[tf.Tensor]) -> None:
    """Raises if the model's output depends on a gradient that it takes itself."""
    watched = recorder.inner_gradients.begin_backward()
    if watched:
        recorder.inner_gradients.check(tape.gradient(targets, watched))


def _decide_broadcasts(recorder: Recorder, batch_size: int) -> None:
    """Notes where the tensors without a batch axis meet the batch."""
    for use in recorder.uses:
        if use.broadcast is not None:
            follow(use.output, deciding_by_size(batch_size, use.broadcast), recorder.inner_gradients.guards)


def _trace(check: Callable[[Sequence[Any]], Recorder], specs: Sequence[Any]) -> Recorder:
    """Traces the check into a graph of its own, on no replica, and returns what it returns."""
    recorders: list[Recorder] = []

    def on_no_replica(*tensors: Any) -> None:
        keras_internals.leave_strategy(tf.compat.v1.get_default_graph())
        recorders.append(check([_with_constant_shape(t, spec) for t, spec in zip(tensors, specs, strict=True)]))

    # Not in an init_scope, in which no tape records.
    tf.function(on_no_replica, autograph=False).get_concrete_function(*specs)
    return recorders[0]


def _with_constant_shape(t: Any, spec: Any) -> Any:
    """Returns a SparseTensor with the shape of its spec as a constant, from which TensorFlow infers other shapes."""
    if isinstance(t, tf.SparseTensor) and spec.shape.is_fully_defined():
        return tf.SparseTensor(t.indices, t.values, tf.constant(spec.shape.as_list(), tf.int64))
    return t


def _is_float(t: Any) -> bool:
    return isinstance(t, tf.Tensor) and t.dtype.is_floating


def _has_batch_axis(t: Any, batch_size: Size) -> bool:
    """Returns whether an argument of the model is a tensor of the batch's examples."""
    if not isinstance(t, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor)) or not t.shape.rank:
        return False
    rows = t.shape[0]
    return rows is None or (isinstance(batch_size, int) and rows == batch_size)


def _spec(t: Any, rows: int, fill: int | None) -> Any:
    """Returns what to trace with in place of a batch: the same with another number of rows, unknown sizes filled in."""
    shape = [rows, *(fill if n is None else n for n in t.shape[1:])]
    if isinstance(t, tf.SparseTensor):
        return tf.SparseTensorSpec(shape, t.dtype)
    if isinstance(t, tf.RaggedTensor):
        return tf.RaggedTensorSpec([rows, *t.shape[1:]], t.dtype, t.ragged_rank, t.row_splits.dtype)
    return tf.TensorSpec(shape, t.dtype)


def _repeated_to(rows: int, t: Any) -> Any:
    """Returns the first examples of a batch, as often as it takes to make so many rows."""
    if isinstance(t, tf.SparseTensor):
        return tf.sparse.from_dense(_repeated_to(rows, tf.sparse.to_dense(t)))
    return tf.gather(t, tf.range(rows) % tf.shape(t)[0])


def _signature(t: Any) -> Any:
    """Returns what of an argument the trace depends on, but for its number of rows."""
    if isinstance(t, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor)):
        return type(t).__name__, t.dtype, tuple(t.shape[1:]) if t.shape.rank else ()
    return t if isinstance(t, (bool, int, float, str, type(None))) else id(t)
