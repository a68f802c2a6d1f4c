"""Embedding: row r of `G_i` is the sum of the output gradients at the positions where example i looks up r."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.norms.composite import is_composite, of_ragged_shape
from tf_largebatch.norms.kernels import lookup
from tf_largebatch.norms.recorder import Recorder, Tensor
from tf_largebatch.norms.rules.dense import TransposedMatMul
from tf_largebatch.norms.shapes import Size, of_examples, product, split_rows, static_or_dynamic_shape, with_positions


@dataclasses.dataclass(frozen=True)
class Lookup:
    """`y = w[ids]`: `ids` [B, ...], none negative; `w` [V, P]; `y` [B, ..., P]."""

    ids: Tensor
    rows: int

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i`, dense, float32, shape [b, V, P]."""
        return lookup.contributions(*self._by_position(d, examples), self.rows)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Positions of an example with the same row add up before the square."""
        return lookup.squared_norms(*self._by_position(d, examples), self.rows)

    def norms_and_gradient(self, d: Tensor) -> None:
        """The ordinary gradient is sparse, which no sum of contributions is."""
        return None

    def inner_product(self, d: Tensor, other: Any, d_other: Tensor, examples: slice) -> Tensor | None:
        """Returns `<G_i, G'_i>` with a product with the transposed table, `sum_{t,t'} d'_{t'}[id_t] (d_t . a_{t'})`."""
        if not isinstance(other, TransposedMatMul):
            return None
        ids, d = self._by_position(d, examples)
        a, d_other = (with_positions(of_examples(t, examples)) for t in (other.a, d_other))
        return lookup.inner_product(ids, d, a, d_other)

    def over_rows(self, batch: Size, rows: Size) -> Lookup:
        """Returns the contraction in which `rows` rows of `ids`, one after the other, are positions of one example."""
        return Lookup(split_rows(self.ids, batch, rows), self.rows)

    @classmethod
    def joined(cls, uses: Sequence[Lookup], ds: Sequence[Tensor]) -> tuple[Lookup, Tensor]:
        """Returns the uses of one table as one use whose positions are those of all, and its `d`."""
        ids = [use._ids_by_position(slice(None)) for use in uses]
        d = ops.concatenate([with_positions(ops.cast(d, "float32")) for d in ds], axis=1)
        return cls(ops.concatenate(ids, axis=1), uses[0].rows), d

    def _by_position(self, d: Tensor, examples: slice) -> tuple[Tensor, Tensor]:
        return self._ids_by_position(examples), with_positions(of_examples(d, examples))

    def _ids_by_position(self, examples: slice) -> Tensor:
        sizes = static_or_dynamic_shape(of_examples(self.ids, examples))
        return ops.reshape(of_examples(self.ids, examples), [sizes[0], product(sizes[1:])])


@dataclasses.dataclass(frozen=True)
class SharedLookup:
    """`y = w[ids]` with the same ids for every example: `ids` and `y` have no batch axis, `d` is [B, *y.shape]."""

    ids: Tensor
    rows: int

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i`, dense, float32, shape [b, V, P]."""
        return self._lookup(d).contributions(d, examples)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Positions with the same row add up before the square."""
        return self._lookup(d).squared_norms(d, examples)

    def norms_and_gradient(self, d: Tensor) -> None:
        """The ordinary gradient is sparse, and summed over the batch already."""
        return None

    def _lookup(self, d: Tensor) -> Lookup:
        return Lookup(ops.broadcast_to(self.ids, [static_or_dynamic_shape(d)[0], *self.ids.shape]), self.rows)


def embedding(layer: Any, recorder: Recorder, inputs: Tensor) -> Tensor:
    """Computes `y = W[ids]`; a negative id counts from the end of the table, as in Keras.

    Ids without a batch axis, such as positions, are looked up once for all examples. A SparseTensor of ids has id 0
    where it has no entry. A RaggedTensor of ids is padded; the padding is cut off from `y`, so its `d` is 0.
    """
    table, rows = layer.embeddings, layer.embeddings.shape[0]
    ids = _dense(inputs)
    ids = ids if keras.backend.standardize_dtype(ids.dtype) in ("int32", "int64") else ops.cast(ids, "int32")
    ids = ops.where(ids < 0, ids + rows, ids)
    y = ops.take(recorder.value(table), ids, axis=0)
    if recorder.has_batch_axis(inputs):
        y = recorder.record(table, y, Lookup(ids, rows))
    else:
        y = recorder.record_broadcast(table, y, SharedLookup(ids, rows))
    y = ops.cast(y, layer.compute_dtype)
    return of_ragged_shape(y, inputs)


def _dense(ids: Any) -> Tensor:
    """Returns ids as a dense tensor, with 0 where a sparse or ragged one has none."""
    if not is_composite(ids):
        return ids
    dense = ops.convert_to_tensor(ids, sparse=False, ragged=False)
    dense.set_shape(ids.shape)
    return dense
