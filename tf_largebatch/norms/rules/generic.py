"""The rule for any layer, slow: the layer alone is differentiated for each example, in vectorized chunks.

It is run only where it is asked for: for a layer marked with `use_generic`, and for every layer without another rule
where the registry is `KERAS.allowing_generic()`.

Cost. The layer runs once in the ordinary pass, and once more forwards and backwards with every example as a batch of
its own, `chunk_size` examples at a time under `tf.vectorized_map` or `jax.vmap`: about twice the layer's cost, on CPUs
with TensorFlow thrice (`backend/tensorflow/example_by_example.py` has the reason), and for each example of a chunk a
gradient as large as the layer's variables. Used several times in one pass, the layer is differentiated once more for
each of its variables, and all examples' gradients of one variable are held at a time. On TensorFlow operations without
a vectorized form run in a loop over the examples.

What an example gives alone must be what the layer gave: a layer that couples examples (training-mode batch
normalization) or draws random numbers (dropout) is found out in the step by its output, which raises
`InvalidArgumentError` on TensorFlow. A step compiled by XLA, as every step on JAX is, cannot raise: there the layer's
norms and gradients are NaN.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tf_largebatch import keras_internals
from tf_largebatch.norms import example_by_example
from tf_largebatch.norms.composite import is_composite
from tf_largebatch.norms.layer_calls import is_float
from tf_largebatch.norms.recorder import Recorder, composite_message, layer_path
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.shapes import Size, product, static_or_dynamic_shape, static_or_dynamic_size

CHUNK_SIZE = 16
_chunk_sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def use_generic(layer: Any, chunk_size: int = CHUNK_SIZE) -> Any:
    """Has a layer, with all layers inside it, measured by the generic rule, whether it has another rule or not.

    Args:
        layer: The layer, of which examples must be independent and which must draw no random numbers.
        chunk_size: How many examples are differentiated at a time.

    Returns:
        The layer.

    Raises:
        ValueError: If `chunk_size` is not a positive integer.
    """
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer. Received: chunk_size={chunk_size!r}")
    KERAS.mark_generic(layer)
    _chunk_sizes[layer] = chunk_size
    return layer


@KERAS.register_generic
def generic(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """Returns the layer's own call on private values of all variables in it, its outputs recorded as one tensor."""
    _refuse_composite((args, kwargs), layer)
    variables = layer.trainable_variables
    values = [recorder.value(v, v.dtype) for v in variables]
    state = list(zip(variables, values, strict=True))
    with example_by_example.on_these_values(state) as scope:
        outputs = type(layer).call(layer, *args, **kwargs)
    _refuse_composite(outputs, layer)
    if scope.losses:
        raise ValueError(
            f"Per-example gradient norms are not available: layer {layer_path(layer)!r} adds a loss, which its outputs "
            "do not show. Give it a rule (tf_largebatch.norms.register) or train with gradient_norms='replica'."
        )
    for v in layer.non_trainable_variables:
        value = scope.get_current_value(v)
        if value is not None:
            v.assign(value)
    joined = join(outputs, recorder.batch_size, layer)
    training = keras_internals.training_of_the_call(layer)
    alone = LayerAlone(layer, args, kwargs, variables, values, recorder.batch_size, joined, training)
    for index, variable in enumerate(variables):
        joined = recorder.record(variable, joined, Alone(alone, index))
    return unjoin(joined, outputs)


def _refuse_composite(tensors: Any, layer: Any) -> None:
    for t in keras.tree.flatten(tensors):
        if is_composite(t):
            raise ValueError(composite_message(layer_path(layer), t, "the slow rule splits dense tensors only"))


def join(outputs: Any, rows: Size, layer: Any) -> Any:
    """Returns all floating-point outputs of a layer side by side, [B, N]."""
    floats = [t for t in keras.tree.flatten(outputs) if is_float(t)]
    for t in floats:
        found = static_or_dynamic_size(t, 0) if len(t.shape) else 0
        message = (
            "Per-example gradient norms need the examples on axis 0 of every layer's output. Layer "
            f"{layer_path(layer)!r} has an output of shape {t.shape}."
        )
        if isinstance(found, int) and isinstance(rows, int):
            if found != rows:
                raise ValueError(message)
        else:
            example_by_example.require_rows(found, rows, message)
    dtypes = {t.dtype for t in floats}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    flat = [ops.reshape(t, [rows, product(static_or_dynamic_shape(t)[1:])]) for t in floats]
    return ops.concatenate([ops.cast(t, dtype) for t in flat], axis=1)


def unjoin(joined: Any, outputs: Any) -> Any:
    """Returns the inverse of `join`; what is no floating-point tensor comes from `outputs`."""
    flat = keras.tree.flatten(outputs)
    sizes = [product(static_or_dynamic_shape(t)[1:]) for t in flat if is_float(t)]
    parts = iter(example_by_example.split_columns(joined, sizes))
    restored = [
        ops.cast(ops.reshape(next(parts), static_or_dynamic_shape(t)), t.dtype) if is_float(t) else t for t in flat
    ]
    for t, again in zip(flat, restored, strict=True):
        mask = None if again is t else keras_internals.keras_mask(t)
        if mask is not None:
            keras_internals.set_keras_mask(again, mask)
    return keras.tree.pack_sequence_as(outputs, restored)


class _Caller(keras.layers.Layer):
    """Calls a function, as a layer of a model that is called in some mode."""

    def call(self, inputs: Any, function: Callable[[], Any], training: bool | None = None) -> Any:
        del inputs, training
        return function()


def in_mode(training: bool | None, function: Callable[[], Any]) -> Any:
    """Calls a function in which layers run in this training mode."""
    return _Caller(autocast=False, name="caller")(ops.zeros([1]), function=function, training=training)


class _Last:
    """What was computed last. No dataclass: JAX's pass copies those, and all copies of a `LayerAlone` share this."""

    key: tuple[Any, Any] | None = None
    found: Any = None


@dataclasses.dataclass
class LayerAlone:
    """One run of a layer, to be repeated example by example."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    variables: list[Any]
    values: list[Any]
    batch_size: Size
    joined: Any
    training: bool | None = None
    last: _Last = dataclasses.field(default_factory=_Last)

    @property
    def chunk_size(self) -> int:
        """How many examples are differentiated at a time."""
        return _chunk_sizes.get(self.layer, CHUNK_SIZE)

    @property
    def tolerance(self) -> float:
        """By how much an example alone may differ from the batch, relative to the largest output: by rounding."""
        return {"float16": 0.05, "bfloat16": 0.3}.get(keras.backend.standardize_dtype(self.joined.dtype), 1e-4)

    @property
    def differs_message(self) -> str:
        """The sentence for a layer of which an example alone gives something else."""
        return (
            f"Per-example gradient norms are not available: layer {layer_path(self.layer)!r} gives something else for "
            "an example alone than within the batch, because it couples examples or draws random numbers. Give it a "
            "rule (tf_largebatch.norms.register) or train with gradient_norms='replica'."
        )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Any], rows: int) -> Any:
        """Returns the layer's outputs side by side, [rows, N], on other arguments and values of its variables.

        No state changes.
        """
        return join(self._run(args, kwargs, values), rows, self.layer)

    def of_all_variables(self, d: Any, examples: slice) -> tuple[Any, list[Any]]:
        """Returns `norms_and_gradients`, worked out once.

        The variables are recorded at one tensor and have the same d.
        """
        key = examples.stop, example_by_example.identity(d)
        if self.last.key is None or any(known is not own for known, own in zip(self.last.key, key, strict=True)):
            self.last.found = example_by_example.norms_and_gradients(self, d, *self.bounds(examples))
            self.last.key = key
        return self.last.found

    def bounds(self, examples: slice) -> tuple[Size, Size]:
        """Where the examples of a slice start and stop."""
        start = 0 if examples.start is None else examples.start
        return start, self.batch_size if examples.stop is None else examples.stop

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Any]) -> Any:
        """Returns the layer on other arguments and values of its variables; no state changes."""
        state = list(zip(self.variables, values, strict=True))
        with example_by_example.on_these_values(state):
            return in_mode(self.training, lambda: self.layer(*args, **kwargs))

    def split_arguments(self) -> tuple[list[Any], Any]:
        """Returns the tensors among the arguments that have the batch axis, and what puts others in their places."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        batched = [i for i, t in enumerate(flat) if ops.is_tensor(t) and self._has_batch_axis(t)]
        masks = {i: mask for i in batched if (mask := keras_internals.keras_mask(flat[i])) is not None}

        def rebuild(tensors: list[Any]) -> Any:
            replaced = list(flat)
            for i, t in zip([*batched, *masks], tensors, strict=True):
                if replaced[i] is flat[i]:
                    replaced[i] = t
                else:  # the mask that Keras keeps at an argument
                    keras_internals.set_keras_mask(replaced[i], t)
            return keras.tree.pack_sequence_as((self.args, self.kwargs), replaced)

        return [*(flat[i] for i in batched), *masks.values()], rebuild

    def _has_batch_axis(self, t: Any) -> bool:
        if len(t.shape) == 0:
            return False
        rows = t.shape[0]
        return rows == self.batch_size if isinstance(rows, int) and isinstance(self.batch_size, int) else rows is None


@dataclasses.dataclass(frozen=True)
class Alone:
    """One variable of a layer that is differentiated alone; `d` is the gradient at its joined outputs [B, N]."""

    alone: LayerAlone
    index: int

    def contributions(self, d: Any, examples: slice) -> Any:
        """Returns `G_i`, shape [b, *w.shape]."""
        return example_by_example.contributions(self.alone, d, examples)[self.index]

    def squared_norms(self, d: Any, examples: slice) -> Any:
        """Chunk by chunk, of all the layer's variables together."""
        return self.alone.of_all_variables(d, examples)[0][self.index]

    def norms_and_gradient(self, d: Any) -> tuple[Any, Any]:
        """Chunk by chunk, of all the layer's variables together."""
        squares, sums = self.alone.of_all_variables(d, slice(None))
        return squares[self.index], sums[self.index]
