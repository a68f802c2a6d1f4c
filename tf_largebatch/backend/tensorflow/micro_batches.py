"""Slices of a batch: its size, its micro-batches, and a function mapped over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape, static_or_dynamic_size
from tf_largebatch.training.splitting import SplitBatch


def batch_size_of(data: Any) -> Size:
    """Returns the number of examples in nested tensors with the examples on axis 0: an int where the shape says it.

    Args:
        data: Nested dense, sparse or ragged tensors; leaves that are None are skipped.
    """
    first = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32) if first.shape[0] is None else first.shape[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32) if first.shape[0] is None else first.shape[0]
    return static_or_dynamic_size(tf.convert_to_tensor(first), 0)


class MicroBatches(SplitBatch):
    """A batch split into micro-batches, which run in `tf.while_loop`.

    Attributes:
        static_size: The size m where every micro-batch has m examples, known when the step is traced; else None.
    """

    def __init__(self, data: Any, batch_size: Size, size: Size) -> None:
        super().__init__(data, batch_size, size)
        even = isinstance(batch_size, int) and isinstance(size, int) and batch_size % size == 0
        self.static_size = size if even else None

    def part(self, j: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Micro-batch number j, and its share of the examples, m_j / B, float32."""
        start = j * self._size
        stop = start + self._size if self.static_size else tf.minimum(start + self._size, self._batch_size)
        part = tf.nest.map_structure(lambda t: None if t is None else self._examples(t, start, stop), self.data)
        return part, tf.cast(stop - start, tf.float32) / tf.cast(self._batch_size, tf.float32)

    def _examples(self, t: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
        """Returns some examples of one tensor."""
        if isinstance(t, tf.SparseTensor):
            others = [t.dense_shape[i] if t.shape[i] is None else t.shape[i] for i in range(1, t.shape.rank)]
            sizes = tf.stack([tf.cast(self.static_size or stop - start, tf.int64), *others])
            part = tf.sparse.slice(t, tf.stack([tf.cast(start, tf.int64), *(0 for _ in others)]), sizes)
            return tf.SparseTensor(part.indices, part.values, sizes)
        if isinstance(t, tf.RaggedTensor):
            return t[start:stop]
        t = tf.convert_to_tensor(t)
        if self.static_size is None:
            return t[start:stop]
        # A size that is known when the step is traced, as XLA needs.
        others = static_or_dynamic_shape(t)[1:]
        return tf.slice(t, [start, *(0 for _ in others)], [self.static_size, *others])

    def added(
        self,
        run: Callable[[Any, tf.Tensor], tuple[Sequence[Any], Sequence[Any]]],
        zeros: Sequence[tf.Tensor],
        specs: Sequence[Any] = (),
        state: Sequence[Any] = (),
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """See `SplitBatch.added`."""
        del state

        def body(j: tf.Tensor, collected: list[tf.TensorArray], sums: list[tf.Tensor]) -> list[Any]:
            values, outputs = run(*self.part(j))
            sums = [
                total if value is None else total + tf.cast(value, total.dtype)
                for total, value in zip(sums, values, strict=True)
            ]
            collected = [array.write(j, output) for array, output in zip(collected, outputs, strict=False)]
            return [j + 1, collected, sums]

        arrays = [self._collector(spec) for spec in specs]
        start = [tf.constant(0), arrays, list(zeros)]
        _, arrays, sums = tf.while_loop(lambda j, *_: j < self.number, body, start, parallel_iterations=1)
        return sums, [self._together(array, spec) for array, spec in zip(arrays, specs, strict=True)]

    def mapped(self, function: Callable[[Any, tf.Tensor], tf.Tensor], like: tf.Tensor) -> tf.Tensor:
        """See `SplitBatch.mapped`."""
        _, results = tf.while_loop(
            lambda j, _: j < self.number,
            lambda j, found: (j + 1, found.write(j, function(self.part(j)[0], j))),
            [tf.constant(0), self._collector(like)],
            parallel_iterations=1,
        )
        return self._together(results, like)

    def _collector(self, spec: Any) -> tf.TensorArray:
        """Returns an array to write each micro-batch's tensor to, described by the whole batch's spec."""
        shape = [self.static_size, *spec.shape[1:]]
        return tf.TensorArray(spec.dtype, self.number, infer_shape=False, element_shape=shape)

    def _together(self, collected: tf.TensorArray, spec: Any) -> tf.Tensor:
        """Returns the batch's tensor, from those of the micro-batches."""
        whole = collected.stack() if self.static_size else collected.concat()
        return tf.reshape(whole, [self._batch_size, *spec.shape[1:]])


def unless_empty(function: Callable[[], tf.Tensor], like: tf.Tensor) -> tf.Tensor:
    """Returns the function's result; for a batch without examples the tensor in whose shape and dtype it would be."""
    return tf.cond(tf.shape(like)[0] > 0, function, lambda: tf.identity(like))


def composite_examples(t: Any, start: int, stop: int) -> Any:
    """Returns some examples of an eager sparse or ragged tensor, all if there are fewer; None for other tensors."""
    if isinstance(t, tf.SparseTensor):
        size, *others = t.dense_shape.numpy()
        return tf.sparse.slice(t, [start, *(0 for _ in others)], [min(stop, size) - start, *others])
    return t[start:stop] if isinstance(t, tf.RaggedTensor) else None
