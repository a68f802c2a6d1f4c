"""Computes norms of per-example sums of rows: row r of `G_i` is the sum of `d_{i,t}` over the positions t with id r.

`ids` is [B, T], `d` is [B, T, P], and a table has `rows` rows. Ids outside the table take no part: GPUs and XLA compute
with any id.
"""

from __future__ import annotations

import tensorflow as tf

from tf_largebatch.backend.tensorflow.kernels.chunks import at_least_one, chunk_of, squared_norms_in_chunks
from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape, static_or_dynamic_size

FLOAT_BYTES = 4
# The rows of repeated ids are gathered in an array of static size, because XLA has no others: a 16th of all positions
# if they fit, else a quarter, else half. Where more are repeated, all rows are added where they lie.
SHARES = (16, 4, 2)


def contributions(ids: tf.Tensor, d: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns `G_i`, dense, float32, shape [B, rows, P]."""
    batch, positions, width = static_or_dynamic_shape(d)
    first = tf.range(batch, dtype=ids.dtype)[:, tf.newaxis] * tf.cast(rows, ids.dtype)
    segments = tf.where((ids >= 0) & (ids < rows), first + ids, -1)
    flat = tf.reshape(tf.cast(d, tf.float32), [batch * positions, width])
    sums = tf.math.unsorted_segment_sum(flat, tf.reshape(segments, [-1]), batch * rows)
    return tf.reshape(sums, [batch, rows, width])


def squared_norms(ids: tf.Tensor, d: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns `||G_i||^2` in float32, shape [B].

    An id that an example has once contributes the squares of its row of `d`. Only the rows of repeated ids are added
    first; sorting the ids of each example finds them. Where few ids are repeated this takes half the time of adding all
    rows; where most are, as in long texts of natural language, it takes the same.
    """
    _, positions, width = d.shape
    if positions is None or width is None:
        squares = _squared_norms(at_least_one(ids), at_least_one(d), rows)
        return squares[: static_or_dynamic_size(d, 0)]
    chunk = chunk_of(FLOAT_BYTES * positions * width)
    return squared_norms_in_chunks(lambda ids, d: _squared_norms(ids, d, rows), ids, d, chunk)


def inner_product(ids: tf.Tensor, d: tf.Tensor, a: tf.Tensor, d_product: tf.Tensor) -> tf.Tensor:
    """Returns `<G_i, G'_i>`, shape [B], with the contribution to a product `y' = a w^T` with the same table.

    It is `sum_{t,t'} d'_{t'}[id_t] (d_t . a_{t'})`.

    Args:
        ids: [B, T], all within the table.
        d: [B, T, P].
        a: The product's input, [B, T', P].
        d_product: The gradient `d'` at the product's output, [B, T', rows].
    """
    looked_up = tf.gather(tf.cast(d_product, tf.float32), ids, axis=2, batch_dims=1)  # [B, T', T]
    products = tf.matmul(tf.cast(a, tf.float32), tf.cast(d, tf.float32), transpose_b=True)
    return tf.reduce_sum(looked_up * products, axis=[1, 2])


def _squared_norms(ids: tf.Tensor, d: tf.Tensor, rows: int) -> tf.Tensor:
    """Returns `||G_i||^2` from all rows of `d` at once."""
    batch, positions, _ = static_or_dynamic_shape(d)
    d = tf.cast(d, tf.float32)
    squares = tf.reduce_sum(tf.square(d), axis=2)
    if isinstance(positions, int) and positions < 2:
        return tf.reduce_sum(tf.where((ids >= 0) & (ids < rows), squares, 0.0), axis=1)
    ordered, order = tf.math.top_k(ids, k=positions)
    in_table = (ordered >= 0) & (ordered < rows)
    as_before = (ordered[:, 1:] == ordered[:, :-1]) & in_table[:, 1:]
    none = tf.zeros([batch, tf.minimum(positions, 1)], tf.bool)
    continues = tf.concat([none, as_before], axis=1)
    repeated = continues | tf.concat([as_before, none], axis=1)
    alone = tf.where(in_table & ~repeated, tf.gather(squares, order, batch_dims=1), 0.0)
    return tf.reduce_sum(alone, axis=1) + _squared_norms_of_repeated(d, order, repeated, continues)


def _squared_norms_of_repeated(d: tf.Tensor, order: tf.Tensor, repeated: tf.Tensor, continues: tf.Tensor) -> tf.Tensor:
    """Returns the squared norms of the sums over runs of equal ids, added by example, shape [B].

    Args:
        d: [B, T, P].
        order: Positions in the order of their ids, [B, T].
        repeated: Whether the id there is one of several, [B, T].
        continues: Whether it is that of the place before, [B, T].
    """
    batch, positions, width = static_or_dynamic_shape(d)
    total = batch * positions
    flat = tf.reshape(d, [total, width])
    example = tf.range(batch)[:, tf.newaxis]
    position = tf.reshape(example * positions + order, [-1])
    repeated = tf.reshape(repeated, [-1])
    run = tf.cumsum(tf.cast(repeated & ~tf.reshape(continues, [-1]), tf.int32)) - 1
    rank = tf.cumsum(tf.cast(repeated, tf.int32)) - 1
    count = tf.reduce_sum(tf.cast(repeated, tf.int32))
    places = tf.math.unsorted_segment_sum(tf.range(total), tf.where(repeated, rank, -1), total)

    def added(rows: tf.Tensor, of_example: tf.Tensor, in_run: tf.Tensor, runs: Size) -> tf.Tensor:
        sums = tf.math.unsorted_segment_sum(rows, in_run, runs)
        of_example = tf.maximum(tf.math.unsorted_segment_max(of_example, in_run, runs), -1)
        return tf.math.unsorted_segment_sum(tf.reduce_sum(tf.square(sums), axis=1), of_example, batch)

    def of_the_first(size: Size) -> tf.Tensor:
        """From the first `size` repeated places, which are all of them."""
        place = places[:size]
        in_run = tf.where(tf.range(size) < count, tf.gather(run, place), -1)
        at = tf.gather(position, place)
        return added(tf.gather(flat, at), at // positions, in_run, size // 2 + 1)  # a run has two places or more

    def of_all() -> tf.Tensor:
        """From all rows where they lie: most are needed, and nothing is copied."""
        in_run = tf.math.unsorted_segment_sum(tf.where(repeated, run + 1, 0), position, total) - 1
        return added(flat, tf.range(total) // positions, in_run, total // 2 + 1)

    def of_the_smallest(sizes: list[Size]) -> tf.Tensor:
        # Not tf.switch_case: compiled by XLA (TensorFlow 2.21) for an empty batch, it kills the process.
        if not sizes:
            return of_all()
        size, *larger = sizes
        return tf.cond(count <= size, lambda: of_the_first(size), lambda: of_the_smallest(larger))

    return of_the_smallest([-(-total // share) for share in SHARES])
