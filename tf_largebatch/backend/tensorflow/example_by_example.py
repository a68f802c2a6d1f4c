"""Differentiates a layer alone, example by example, on TensorFlow: in chunks, by `tf.vectorized_map`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.norms.shapes import Size, of_examples, static_or_dynamic_shape
from tf_largebatch.norms.sums import sum_squares_per_example


def contributions(alone: Any, d: tf.Tensor, examples: slice) -> list[tf.Tensor]:
    """For each variable of a `LayerAlone` `G_i` of the examples of the slice, float32, [b, *w.shape]."""
    batched, rebuild = alone.split_arguments()
    cut = [of_examples(t, examples) for t in (*batched, d, alone.joined)]
    return _contributions(alone, cut[:-2], rebuild, *cut[-2:])


def _contributions(alone: Any, batched: list[tf.Tensor], rebuild: Any, d: tf.Tensor, joined: tf.Tensor) -> Any:
    rows = rows_per_example()

    def of_one(example: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs, d_one, expected = example
        args, kwargs = rebuild([tf.stack([t] * rows) for t in inputs])
        # Made here: a tape does not see through a tensor that this graph captured before.
        values = [tf.identity(value) for value in alone.values]
        with tf.GradientTape() as tape:
            tape.watch(values)
            y = alone.run(args, kwargs, values, rows)[:1]
        shares = tape.gradient(y, values, d_one[tf.newaxis], unconnected_gradients="zero")
        error = tf.reduce_max(tf.abs(tf.cast(y[0], tf.float32) - tf.cast(expected, tf.float32)))
        return error, [tf.cast(share, tf.float32) for share in shares]

    errors, shares = tf.vectorized_map(of_one, (batched, d, joined))
    poison = _check_same(alone, tf.reduce_max(errors))
    return [share + poison for share in shares]


def norms_and_gradients(alone: Any, d: tf.Tensor, start: Size, stop: Size) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns `||G_i||^2` of the examples from start to stop, [variables, b], and for each variable `sum_i G_i`.

    Every chunk has the same size, which XLA needs to know. The last one is filled up with its last example, whose `d`
    is zero there.
    """
    batched, rebuild = alone.split_arguments()
    examples = [*batched, d, alone.joined]
    count = stop - start
    if not isinstance(count, int):  # perhaps none: XLA compiles a chunk all the same, and needs a row to gather
        examples = [tf.concat([t, tf.zeros([1, *static_or_dynamic_shape(t)[1:]], t.dtype)], 0) for t in examples]
    size = min(alone.chunk_size, count) if isinstance(count, int) and count else alone.chunk_size
    chunks = -(-count // size)

    def of_chunk(j: Any) -> list[tf.Tensor]:
        places = start + j * size + tf.range(size)
        rows = tf.maximum(tf.minimum(places, stop - 1), 0)
        inside = tf.reshape(tf.cast(places < stop, d.dtype), [size, *(1 for _ in d.shape[1:])])
        cut = [tf.gather(t, rows) for t in examples]
        return _contributions(alone, cut[:-2], rebuild, cut[-2] * inside, cut[-1])

    def add_chunk(j: Any, squares: tf.TensorArray, sums: list[tf.Tensor]) -> tuple[Any, ...]:
        shares = of_chunk(j)
        squares = squares.write(j, tf.stack([sum_squares_per_example(s) for s in shares]))
        return j + 1, squares, [total + tf.reduce_sum(s, axis=0) for total, s in zip(sums, shares, strict=True)]

    squares = tf.TensorArray(tf.float32, size=chunks, element_shape=[len(alone.values), size])
    _, squares, sums = tf.while_loop(
        lambda j, *_: j < chunks,
        add_chunk,
        (tf.constant(0), squares, [tf.zeros(c.shape) for c in alone.values]),
        parallel_iterations=1,
    )
    together = tf.reshape(tf.transpose(squares.stack(), [1, 0, 2]), [len(alone.values), chunks * size])
    return together[:, :count], sums


def _check_same(alone: Any, error: tf.Tensor) -> tf.Tensor:
    """Raises if an example alone gives something else. Rounding may differ, and NaN is not checked.

    Returns zero; NaN where raising is impossible, since XLA leaves assertions out.
    """
    differs = error > alone.tolerance * tf.reduce_max(tf.abs(tf.cast(alone.joined, tf.float32)))
    message = alone.differs_message + " Largest difference:"
    with tf.control_dependencies([tf.debugging.Assert(tf.logical_not(differs), [message, error])]):
        return tf.where(differs, float("nan"), 0.0)


def rows_per_example() -> int:
    """Returns how often an example is repeated to make its batch; the gradient is that of the first.

    One, but two without an accelerator: vectorized, a batch of one gives products of [n, 1, j, k] with [k, l], in which
    the oneDNN kernels of TensorFlow 2.20 and 2.21 write past their memory (tensorflow/tensorflow issue 117700).
    """
    return 1 if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU") else 2


def on_these_values(state: list[tuple[Any, Any]]) -> keras.StatelessScope:
    """Returns a scope in which variables have these values, no variable changes, and losses are collected."""
    return keras.StatelessScope(state_mapping=state, collect_losses=True)


def require_rows(found: Size, rows: Size, message: str) -> None:
    """Raises if two numbers of rows, of which one is known only in the step, differ."""
    tf.debugging.assert_equal(found, rows, message)


def identity(d: tf.Tensor) -> Any:
    """Returns None: the gradient at a layer's outputs is the same for all its variables, in tensors of its own."""
    del d
    return None


def split_columns(t: tf.Tensor, sizes: list[Size]) -> list[tf.Tensor]:
    """Splits the last axis of [B, N] into parts of these sizes."""
    return tf.split(t, sizes, axis=1)
