"""Working off the examples of a batch in chunks, so that memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import static_or_dynamic_size

# Working set of a chunk. Half or twice as much changes a layer's time by less than a tenth on a CPU (ResNet-20 at
# batch 256); a sixteenth doubles it.
CHUNK_BYTES = 16 * 2**20


def chunk_of(bytes_per_example: int) -> int:
    """How many examples to work off at once."""
    return max(1, CHUNK_BYTES // max(1, bytes_per_example))


def norms_and_gradient_in_chunks(
    work: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    a: tf.Tensor,
    d: tf.Tensor,
    chunk: int,
    shape: Sequence[int],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Concatenates the norms and adds up the gradients that `work` gives for each chunk.

    Args:
        work: of `a` and `d` of b examples, their squared norms, shape [b], and their sum of contributions, float32.
        a: what the layer saw, examples on axis 0.
        d: the gradient at its output, likewise.
        chunk: examples in a chunk; the last one may have fewer.
        shape: the shape of a contribution.

    Returns:
        Squared norms, shape [B], and the sum of contributions, both float32.
    """
    batch = static_or_dynamic_size(d, 0)
    if isinstance(batch, int) and batch <= chunk:
        return work(a, d)
    full = batch // chunk

    def body(i: tf.Tensor, squares: tf.TensorArray, total: tf.Tensor) -> list[Any]:
        more, part = work(_examples(a, i * chunk, chunk), _examples(d, i * chunk, chunk))
        return [i + 1, squares.write(i, more), total + part]

    start = [tf.constant(0), tf.TensorArray(tf.float32, full, element_shape=[chunk]), tf.zeros(shape)]
    _, array, total = tf.while_loop(lambda i, *_: i < full, body, start, parallel_iterations=1)
    squares = tf.reshape(array.stack(), [full * chunk])
    if isinstance(batch, int) and batch % chunk == 0:
        return squares, total
    rest = full * chunk
    rest_squares, rest_total = work(a[rest:], d[rest:])
    return tf.concat([squares, rest_squares], axis=0), total + rest_total


def squared_norms_in_chunks(
    work: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], a: tf.Tensor, d: tf.Tensor, chunk: int
) -> tf.Tensor:
    """As `norms_and_gradient_in_chunks` for a `work` that gives squared norms only; they come concatenated, [B]."""

    def without_gradient(a: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return work(a, d), tf.zeros([])

    return norms_and_gradient_in_chunks(without_gradient, a, d, chunk, [])[0]


def not_before(t: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
    """`t` for work that could begin without `d`: in a graph it waits, lest its results lie about until `d` comes."""
    with tf.control_dependencies([d]):
        return tf.identity(t)


def _examples(t: tf.Tensor, start: Any, count: int) -> tf.Tensor:
    """`count` examples from `start`: a slice of static size, which XLA needs."""
    begin = [start, *(0 for _ in range(t.shape.rank - 1))]
    size = [count, *(-1 for _ in range(t.shape.rank - 1))]
    return tf.slice(t, begin, size)
