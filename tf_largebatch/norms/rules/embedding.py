"""Embedding: row r of `G_i` is the sum of the output gradients at the positions where example i looks up r."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops

from tf_largebatch.norms.kernels import lookup
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.dense import TransposedMatMul
from tf_largebatch.norms.shapes import Size, of_examples, product, split_rows, static_or_dynamic_shape, with_positions


@dataclasses.dataclass(frozen=True)
class Lookup:
    """`y = w[ids]`: `ids` [B, ...], none negative; `w` [V, P]; `y` [B, ..., P]."""

    ids: tf.Tensor
    rows: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, dense, float32, shape [b, V, P]."""
        return lookup.contributions(*self._by_position(d, examples), self.rows)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Positions of an example with the same row add up before the square."""
        return lookup.squared_norms(*self._by_position(d, examples), self.rows)

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """The ordinary gradient is sparse, which no sum of contributions is."""
        return None

    def inner_product(self, d: tf.Tensor, other: Any, d_other: tf.Tensor, examples: slice) -> tf.Tensor | None:
        """`<G_i, G'_i>` with a product with the transposed table, `sum_{t,t'} d'_{t'}[id_t] (d_t . a_{t'})`."""
        if not isinstance(other, TransposedMatMul):
            return None
        ids, d = self._by_position(d, examples)
        a, d_other = (with_positions(of_examples(t, examples)) for t in (other.a, d_other))
        looked_up = tf.gather(tf.cast(d_other, tf.float32), ids, axis=2, batch_dims=1)  # [b, T', T]
        products = tf.matmul(tf.cast(a, tf.float32), tf.cast(d, tf.float32), transpose_b=True)
        return tf.reduce_sum(looked_up * products, axis=[1, 2])

    def over_rows(self, batch: Size, rows: Size) -> Lookup:
        """The contraction in which `rows` rows of `ids`, one after the other, are positions of one example."""
        return Lookup(split_rows(self.ids, batch, rows), self.rows)

    @classmethod
    def joined(cls, uses: Sequence[Lookup], ds: Sequence[tf.Tensor]) -> tuple[Lookup, tf.Tensor]:
        """The uses of one table as one use whose positions are those of all, and its `d`."""
        ids = [tf.cast(use._ids_by_position(slice(None)), tf.int64) for use in uses]
        d = tf.concat([with_positions(tf.cast(d, tf.float32)) for d in ds], axis=1)
        return cls(tf.concat(ids, axis=1), uses[0].rows), d

    def _by_position(self, d: tf.Tensor, examples: slice) -> tuple[tf.Tensor, tf.Tensor]:
        return self._ids_by_position(examples), with_positions(of_examples(d, examples))

    def _ids_by_position(self, examples: slice) -> tf.Tensor:
        sizes = static_or_dynamic_shape(of_examples(self.ids, examples))
        return tf.reshape(of_examples(self.ids, examples), [sizes[0], product(sizes[1:])])


@dataclasses.dataclass(frozen=True)
class SharedLookup:
    """`y = w[ids]` with the same ids for every example: `ids` and `y` have no batch axis, `d` is [B, *y.shape]."""

    ids: tf.Tensor
    rows: int

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i`, dense, float32, shape [b, V, P]."""
        return self._lookup(d).contributions(d, examples)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Positions with the same row add up before the square."""
        return self._lookup(d).squared_norms(d, examples)

    def norms_and_gradient(self, d: tf.Tensor) -> None:
        """The ordinary gradient is sparse, and summed over the batch already."""
        return None

    def _lookup(self, d: tf.Tensor) -> Lookup:
        return Lookup(tf.broadcast_to(self.ids, [static_or_dynamic_shape(d)[0], *self.ids.shape]), self.rows)


def embedding(layer: Any, recorder: Recorder, inputs: tf.Tensor) -> tf.Tensor:
    """Computes `y = W[ids]`; a negative id counts from the end of the table, as in Keras.

    Ids without a batch axis, such as positions, are looked up once for all examples. A SparseTensor of ids has id 0
    where it has no entry. A RaggedTensor of ids is padded; the padding is cut off from `y`, so its `d` is 0.
    """
    table, rows = layer.embeddings, layer.embeddings.shape[0]
    ids = _dense(inputs)
    ids = ids if ids.dtype in (tf.int32, tf.int64) else tf.cast(ids, tf.int32)
    ids = tf.where(ids < 0, ids + rows, ids)
    y = tf.gather(recorder.value(table), ids)
    if recorder.has_batch_axis(inputs):
        y = recorder.record(table, y, Lookup(ids, rows))
    else:
        y = recorder.record_broadcast(table, y, SharedLookup(ids, rows))
    y = ops.cast(y, layer.compute_dtype)
    if isinstance(inputs, tf.RaggedTensor):
        return tf.RaggedTensor.from_tensor(y, inputs.nested_row_lengths())
    return y


def _dense(ids: Any) -> tf.Tensor:
    """Returns ids as a dense tensor, with 0 where a sparse or ragged one has none."""
    if not isinstance(ids, (tf.SparseTensor, tf.RaggedTensor)):
        return ids
    dense = ops.convert_to_tensor(ids, sparse=False, ragged=False)
    dense.set_shape(ids.shape)
    return dense
