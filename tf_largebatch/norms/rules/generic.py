"""The rule for any layer, slow: the layer alone is differentiated for each example, in vectorized chunks.

It is run only where it is asked for: for a layer marked with `use_generic`, and for every layer without another rule
where the registry is `KERAS.allowing_generic()`.

Cost. The layer runs once in the ordinary pass, and once more forwards and backwards with every example as a batch of
its own, `chunk_size` examples at a time under `tf.vectorized_map`: about twice the layer's cost, on CPUs thrice (see
`rows_per_example`), and for each example of a chunk a gradient as large as the layer's variables. Used several times in
one pass, the layer is differentiated once more for each of its variables, and all examples' gradients of one variable
are held at a time. Operations without a vectorized form run in a loop over the examples.

What an example gives alone must be what the layer gave: a layer that couples examples (training-mode batch
normalization) or draws random numbers (dropout) is found out in the step by its output, which raises
`InvalidArgumentError`; in a step compiled by XLA, which leaves assertions out, its norms and gradients are NaN.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch import keras_internals
from tf_largebatch.norms.recorder import Recorder, composite_message, layer_path
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.shapes import Size, of_examples, product, static_or_dynamic_shape, static_or_dynamic_size
from tf_largebatch.norms.sums import sum_squares_per_example

CHUNK_SIZE = 16
_chunk_sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def use_generic(layer: Any, chunk_size: int = CHUNK_SIZE) -> Any:
    """Has a layer, with all layers inside it, measured by the generic rule, whether it has another rule or not.

    Args:
        layer: the layer, of which examples must be independent and which must draw no random numbers.
        chunk_size: how many examples are differentiated at a time.

    Returns:
        The layer.

    Raises:
        ValueError: if `chunk_size` is not a positive integer.
    """
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer. Received: chunk_size={chunk_size!r}")
    KERAS.mark_generic(layer)
    _chunk_sizes[layer] = chunk_size
    return layer


@KERAS.register_generic
def generic(layer: Any, recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
    """The layer's own call on private copies of all variables in it, its outputs recorded as one tensor."""
    _refuse_composite((args, kwargs), layer)
    variables = layer.trainable_variables
    copies = [recorder.value(v, v.dtype) for v in variables]
    state = list(zip(variables, copies, strict=True))
    with keras.StatelessScope(state_mapping=state, collect_losses=True) as scope:
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
    alone = LayerAlone(layer, args, kwargs, variables, copies, recorder.batch_size, joined, training)
    for index, variable in enumerate(variables):
        joined = recorder.record(variable, joined, Alone(alone, index))
    return unjoin(joined, outputs)


def _refuse_composite(tensors: Any, layer: Any) -> None:
    for t in keras.tree.flatten(tensors):
        if isinstance(t, (tf.SparseTensor, tf.RaggedTensor)):
            raise ValueError(composite_message(layer_path(layer), t, "the slow rule splits dense tensors only"))


def join(outputs: Any, rows: Size, layer: Any) -> tf.Tensor:
    """All floating-point outputs of a layer side by side, [B, N]."""
    floats = [t for t in keras.tree.flatten(outputs) if _is_float(t)]
    for t in floats:
        found = static_or_dynamic_size(t, 0) if t.shape.rank else 0
        message = (
            "Per-example gradient norms need the examples on axis 0 of every layer's output. Layer "
            f"{layer_path(layer)!r} has an output of shape {t.shape}."
        )
        if isinstance(found, int) and isinstance(rows, int):
            if found != rows:
                raise ValueError(message)
        else:
            tf.debugging.assert_equal(found, rows, message)
    dtypes = {t.dtype for t in floats}
    dtype = dtypes.pop() if len(dtypes) == 1 else tf.float32
    flat = [tf.reshape(t, [rows, product(static_or_dynamic_shape(t)[1:])]) for t in floats]
    return tf.concat([tf.cast(t, dtype) for t in flat], axis=1)


def unjoin(joined: tf.Tensor, outputs: Any) -> Any:
    """The inverse of `join`; what is no floating-point tensor comes from `outputs`."""
    flat = keras.tree.flatten(outputs)
    shapes = [static_or_dynamic_shape(t) for t in flat if _is_float(t)]
    parts = iter(tf.split(joined, [product(shape[1:]) for shape in shapes], axis=1))
    restored = [
        tf.cast(tf.reshape(next(parts), static_or_dynamic_shape(t)), t.dtype) if _is_float(t) else t for t in flat
    ]
    for t, again in zip(flat, restored, strict=True):
        if again is not t and getattr(t, "_keras_mask", None) is not None:
            again._keras_mask = t._keras_mask
    return keras.tree.pack_sequence_as(outputs, restored)


class _Caller(keras.layers.Layer):
    """Calls a function, as a layer of a model that is called in some mode."""

    def call(self, inputs: Any, function: Callable[[], Any], training: bool | None = None) -> Any:
        del inputs, training
        return function()


def in_mode(training: bool | None, function: Callable[[], Any]) -> Any:
    """Calls a function in which layers run in this training mode."""
    return _Caller(autocast=False, name="caller")(tf.zeros([1]), function=function, training=training)


def rows_per_example() -> int:
    """How many copies of an example make its batch; the gradient is that of the first.

    One, but two without an accelerator: vectorized, a batch of one gives products of [n, 1, j, k] with [k, l], in which
    the oneDNN kernels of TensorFlow 2.20 and 2.21 write past their memory (tensorflow/tensorflow issue 117700).
    """
    return 1 if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU") else 2


def _is_float(t: Any) -> bool:
    return tf.is_tensor(t) and t.dtype.is_floating


@dataclasses.dataclass
class LayerAlone:
    """One run of a layer, to be repeated example by example."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    variables: list[Any]
    copies: list[tf.Tensor]
    batch_size: Size
    joined: tf.Tensor
    training: bool | None = None
    _done: tuple[Any, tuple[tf.Tensor, list[tf.Tensor]]] | None = None

    def contributions(self, d: tf.Tensor, examples: slice) -> list[tf.Tensor]:
        """For each variable `G_i` of the examples of the slice, float32, [b, *w.shape]."""
        batched, rebuild = self._split_arguments()
        cut = [of_examples(t, examples) for t in (*batched, d, self.joined)]
        return self._contributions(cut[:-2], rebuild, *cut[-2:])

    def _contributions(self, batched: list[tf.Tensor], rebuild: Any, d: tf.Tensor, joined: tf.Tensor) -> Any:
        rows = rows_per_example()

        def of_one(example: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs, d_one, expected = example
            args, kwargs = rebuild([tf.stack([t] * rows) for t in inputs])
            # Made here: a tape does not see through a tensor that this graph captured before.
            copies = [tf.identity(copy) for copy in self.copies]
            with tf.GradientTape() as tape:
                tape.watch(copies)
                y = join(self._run(args, kwargs, copies), rows, self.layer)[:1]
            shares = tape.gradient(y, copies, d_one[tf.newaxis], unconnected_gradients="zero")
            error = tf.reduce_max(tf.abs(tf.cast(y[0], tf.float32) - tf.cast(expected, tf.float32)))
            return error, [tf.cast(share, tf.float32) for share in shares]

        errors, shares = tf.vectorized_map(of_one, (batched, d, joined))
        poison = self._check_same(tf.reduce_max(errors))
        return [share + poison for share in shares]

    def norms_and_gradients(self, d: tf.Tensor, start: Size, stop: Size) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """`||G_i||^2` of the examples from start to stop, [variables, b], and for each variable `sum_i G_i`.

        Every chunk has the same size, which XLA needs to know. The last one is filled up with its last example, whose
        `d` is zero there.
        """
        batched, rebuild = self._split_arguments()
        examples = [*batched, d, self.joined]
        count = stop - start
        if not isinstance(count, int):  # perhaps none: XLA compiles a chunk all the same, and needs a row to gather
            examples = [tf.concat([t, tf.zeros([1, *static_or_dynamic_shape(t)[1:]], t.dtype)], 0) for t in examples]
        size = _chunk_sizes.get(self.layer, CHUNK_SIZE)
        size = min(size, count) if isinstance(count, int) and count else size
        chunks = -(-count // size)

        def of_chunk(j: Any) -> list[tf.Tensor]:
            places = start + j * size + tf.range(size)
            rows = tf.maximum(tf.minimum(places, stop - 1), 0)
            inside = tf.reshape(tf.cast(places < stop, d.dtype), [size, *(1 for _ in d.shape[1:])])
            cut = [tf.gather(t, rows) for t in examples]
            return self._contributions(cut[:-2], rebuild, cut[-2] * inside, cut[-1])

        def add_chunk(j: Any, squares: tf.TensorArray, sums: list[tf.Tensor]) -> tuple[Any, ...]:
            shares = of_chunk(j)
            squares = squares.write(j, tf.stack([sum_squares_per_example(s) for s in shares]))
            return j + 1, squares, [total + tf.reduce_sum(s, axis=0) for total, s in zip(sums, shares, strict=True)]

        squares = tf.TensorArray(tf.float32, size=chunks, element_shape=[len(self.copies), size])
        _, squares, sums = tf.while_loop(
            lambda j, *_: j < chunks,
            add_chunk,
            (tf.constant(0), squares, [tf.zeros(c.shape) for c in self.copies]),
            parallel_iterations=1,
        )
        together = tf.reshape(tf.transpose(squares.stack(), [1, 0, 2]), [len(self.copies), chunks * size])
        return together[:, :count], sums

    def of_all_variables(self, d: tf.Tensor, examples: slice) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """`norms_and_gradients`, worked out once: the variables are recorded at one tensor and have the same d."""
        if self._done is None or self._done[0] is not examples.stop:
            self._done = examples.stop, self.norms_and_gradients(d, *self.bounds(examples))
        return self._done[1]

    def bounds(self, examples: slice) -> tuple[Size, Size]:
        """Where the examples of a slice start and stop."""
        start = 0 if examples.start is None else examples.start
        return start, self.batch_size if examples.stop is None else examples.stop

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], copies: list[tf.Tensor]) -> Any:
        """The layer on other arguments and copies of its variables; no state changes."""
        state = list(zip(self.variables, copies, strict=True))
        with keras.StatelessScope(state_mapping=state, collect_losses=True):
            return in_mode(self.training, lambda: self.layer(*args, **kwargs))

    def _split_arguments(self) -> tuple[list[tf.Tensor], Any]:
        """The tensors among the arguments that have the batch axis, and what puts others in their places."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        batched = [i for i, t in enumerate(flat) if tf.is_tensor(t) and self._has_batch_axis(t)]
        masks = {i: flat[i]._keras_mask for i in batched if getattr(flat[i], "_keras_mask", None) is not None}

        def rebuild(tensors: list[tf.Tensor]) -> Any:
            replaced = list(flat)
            for i, t in zip([*batched, *masks], tensors, strict=True):
                if replaced[i] is flat[i]:
                    replaced[i] = t
                else:  # the mask that Keras keeps at an argument
                    replaced[i]._keras_mask = t
            return keras.tree.pack_sequence_as((self.args, self.kwargs), replaced)

        return [*(flat[i] for i in batched), *masks.values()], rebuild

    def _has_batch_axis(self, t: tf.Tensor) -> bool:
        if t.shape.rank == 0:
            return False
        rows = t.shape[0]
        return rows == self.batch_size if isinstance(rows, int) and isinstance(self.batch_size, int) else rows is None

    def _check_same(self, error: tf.Tensor) -> tf.Tensor:
        """Raises if an example alone gives something else. Rounding may differ, and NaN is not checked.

        Returns zero; NaN where raising is impossible, since XLA leaves assertions out.
        """
        tolerance = {tf.float16: 0.05, tf.bfloat16: 0.3}.get(self.joined.dtype, 1e-4)
        differs = error > tolerance * tf.reduce_max(tf.abs(tf.cast(self.joined, tf.float32)))
        message = (
            f"Per-example gradient norms are not available: layer {layer_path(self.layer)!r} gives something else for "
            "an example alone than within the batch, because it couples examples or draws random numbers. Give it a "
            "rule (tf_largebatch.norms.register) or train with gradient_norms='replica'. Largest difference:"
        )
        with tf.control_dependencies([tf.debugging.Assert(tf.logical_not(differs), [message, error])]):
            return tf.where(differs, float("nan"), 0.0)


@dataclasses.dataclass(frozen=True)
class Alone:
    """One variable of a layer that is differentiated alone; `d` is the gradient at its joined outputs [B, N]."""

    alone: LayerAlone
    index: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, shape [b, *w.shape]."""
        return self.alone.contributions(d, examples)[self.index]

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Chunk by chunk, of all the layer's variables together."""
        return self.alone.of_all_variables(d, examples)[0][self.index]

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Chunk by chunk, of all the layer's variables together."""
        squares, sums = self.alone.of_all_variables(d, slice(None))
        return squares[self.index], sums[self.index]
