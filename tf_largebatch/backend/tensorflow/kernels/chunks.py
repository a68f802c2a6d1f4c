"""Computes a contraction in chunks of examples, so that memory does not grow with the batch.

This compiles under XLA with a batch size that is unknown when the step is traced. XLA knows it when it compiles, but it
compiles a loop's body whether or not it runs. So a chunk is never larger than the batch, and never empty: some of
TensorFlow's kernels divide by the number of examples, and an empty batch becomes one example of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import Size, static_or_dynamic_size

# The working set of a chunk. Half or twice as much changes a layer's time by less than a tenth on a CPU (ResNet-20 at
# batch 256); a sixteenth doubles it.
CHUNK_BYTES = 16 * 2**20


def chunk_of(bytes_per_example: int, budget: int | None = None) -> int:
    """Returns how many examples fit into the budget of a chunk, `CHUNK_BYTES` by default; at least one."""
    return max(1, (budget or CHUNK_BYTES) // max(1, bytes_per_example))


def norms_and_gradient_in_chunks(
    work: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    a: tf.Tensor,
    d: tf.Tensor,
    chunk: int,
    shape: Sequence[int],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Concatenates the norms and adds up the gradients that `work` returns for each chunk.

    Args:
        work: Maps `a` and `d` of b examples to their squared norms, shape [b], and the sum of their contributions,
            both float32; called with at least one example.
        a: The layer's input, examples on axis 0.
        d: The gradient at the layer's output, examples on axis 0.
        chunk: The number of examples in a chunk; the last chunk may have fewer.
        shape: The shape of a contribution.

    Returns:
        Squared norms, shape [B], and the sum of contributions, both float32.
    """
    examples = batch = static_or_dynamic_size(d, 0)
    if isinstance(batch, int) and batch == 0:
        return tf.zeros([0]), tf.zeros(shape)
    if isinstance(batch, int) and batch <= chunk:
        return work(a, d)
    size: Size = chunk
    if not isinstance(batch, int):
        a, d, batch = at_least_one(a), at_least_one(d), tf.maximum(batch, 1)
        size = tf.minimum(chunk, batch)
    full = batch // chunk

    def body(i: tf.Tensor, squares: tf.TensorArray, total: tf.Tensor) -> list[Any]:
        more, part = work(_examples(a, i * chunk, size), _examples(d, i * chunk, size))
        return [i + 1, squares.write(i, more), total + part]

    array = tf.TensorArray(tf.float32, full, element_shape=[chunk if isinstance(size, int) else None])
    _, array, total = tf.while_loop(
        lambda i, *_: i < full, body, [tf.constant(0), array, tf.zeros(shape)], parallel_iterations=1
    )
    squares = array.concat()
    if isinstance(batch, int) and batch % chunk == 0:
        return tf.ensure_shape(squares, [batch]), total
    rest = full * chunk
    rest_squares, rest_total = work(at_least_one(a[rest:]), at_least_one(d[rest:]))
    return tf.concat([squares, rest_squares], axis=0)[:examples], total + rest_total


def squared_norms_in_chunks(
    work: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], a: tf.Tensor, d: tf.Tensor, chunk: int
) -> tf.Tensor:
    """Concatenates the squared norms that `work` returns for each chunk, shape [B]."""

    def without_gradient(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return work(a, d), tf.zeros([])

    return norms_and_gradient_in_chunks(without_gradient, a, d, chunk, [])[0]


def at_least_one(t: tf.Tensor) -> tf.Tensor:
    """Returns `t`, or one example of zeros where it has none; nothing is copied where there are examples."""
    examples = static_or_dynamic_size(t, 0)
    if isinstance(examples, int):
        return t
    padding = [[0, tf.maximum(1 - examples, 0)], *([0, 0] for _ in range(t.shape.rank - 1))]
    return tf.ensure_shape(tf.pad(t, padding), [None, *t.shape[1:]])


def _examples(t: tf.Tensor, start: Any, count: Size) -> tf.Tensor:
    """Returns `count` examples from `start`: a slice whose size XLA knows when it compiles."""
    begin = [start, *(0 for _ in range(t.shape.rank - 1))]
    size = [count, *(-1 for _ in range(t.shape.rank - 1))]
    return tf.ensure_shape(tf.slice(t, begin, size), [count if isinstance(count, int) else None, *t.shape[1:]])
