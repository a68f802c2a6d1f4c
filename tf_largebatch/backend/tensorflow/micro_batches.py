"""Slices of a batch: its size, its micro-batches, and a function mapped over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape, static_or_dynamic_size


def batch_size_of(data: Any) -> Size:
    """The number of examples in nested tensors with the examples on axis 0: an int where the shape says it.

    Args:
        data: Nested dense, sparse or ragged tensors; leaves that are None are skipped.
    """
    first = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32) if first.shape[0] is None else first.shape[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32) if first.shape[0] is None else first.shape[0]
    return static_or_dynamic_size(tf.convert_to_tensor(first), 0)


def number_of_micro_batches(batch_size: Size, micro_batch_size: Size) -> Size:
    """How many micro-batches a batch makes. The last one may be smaller; an empty batch makes none."""
    return -(-batch_size // micro_batch_size)


class MicroBatches:
    """A batch split into micro-batches.

    Args:
        data: Nested tensors with the examples on axis 0, or None.
        batch_size: Number of examples in `data`, B.
        size: Number of examples in a micro-batch, m.

    Attributes:
        data: The batch.
        number: Number of micro-batches.
        static_size: m where every micro-batch has m examples, known when the step is traced; else None.
    """

    def __init__(self, data: Any, batch_size: Size, size: Size) -> None:
        self.data, self._batch_size, self._size = data, batch_size, size
        self.number = number_of_micro_batches(batch_size, size)
        even = isinstance(batch_size, int) and isinstance(size, int) and batch_size % size == 0
        self.static_size = size if even else None

    def part(self, j: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Micro-batch number j, and its share of the examples, m_j / B, float32."""
        start = j * self._size
        stop = start + self._size if self.static_size else tf.minimum(start + self._size, self._batch_size)
        part = tf.nest.map_structure(lambda t: None if t is None else self._examples(t, start, stop), self.data)
        return part, tf.cast(stop - start, tf.float32) / tf.cast(self._batch_size, tf.float32)

    def _examples(self, t: Any, start: tf.Tensor, stop: tf.Tensor) -> Any:
        """Some examples of one tensor."""
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
        """Runs one micro-batch after the other, in one compiled loop.

        Args:
            run: Of a micro-batch and its share of the examples: what to add up, dense tensors or None, and what to
                collect, tensors with the examples on axis 0.
            zeros: A zero for each sum, in its shape and dtype.
            specs: For each tensor to collect the shape and dtype that it has for the batch.
            state: Variables that `run` may assign, as the JAX backend must know.

        Returns:
            The sums and the collected tensors.
        """
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

    def mapped(self, function: Callable[[Any, tf.Tensor], tf.Tensor], spec: Any) -> tf.Tensor:
        """The results of a function of each micro-batch and its number, together; see `mapped_over_micro_batches`."""
        _, results = tf.while_loop(
            lambda j, _: j < self.number,
            lambda j, found: (j + 1, found.write(j, function(self.part(j)[0], j))),
            [tf.constant(0), self._collector(spec)],
            parallel_iterations=1,
        )
        return self._together(results, spec)

    def _collector(self, spec: Any) -> tf.TensorArray:
        """An array to write each micro-batch's tensor to, described by the whole batch's spec."""
        shape = [self.static_size, *spec.shape[1:]]
        return tf.TensorArray(spec.dtype, self.number, infer_shape=False, element_shape=shape)

    def _together(self, collected: tf.TensorArray, spec: Any) -> tf.Tensor:
        """The batch's tensor, from those of the micro-batches."""
        whole = collected.stack() if self.static_size else collected.concat()
        return tf.reshape(whole, [self._batch_size, *spec.shape[1:]])


def mapped_over_micro_batches(
    function: Callable[[Any, tf.Tensor], tf.Tensor], data: Any, like: tf.Tensor, micro_batch_size: int
) -> tf.Tensor:
    """Applies a function to each micro-batch in one compiled loop and concatenates its results.

    Args:
        function: Of a micro-batch and its number, int32; returns a tensor with the examples on axis 0.
        data: Nested tensors with the examples on axis 0.
        like: A tensor in the shape and dtype of the result.
        micro_batch_size: Number of examples in a micro-batch.

    Returns:
        Tensor in the shape and dtype of `like`.
    """
    batches = MicroBatches(data, static_or_dynamic_size(like, 0), micro_batch_size)
    spec = tf.TensorSpec(like.shape, like.dtype)
    if isinstance(batches.number, int):
        return batches.mapped(function, spec)
    return unless_empty(lambda: batches.mapped(function, spec), like)


def unless_empty(function: Callable[[], tf.Tensor], like: tf.Tensor) -> tf.Tensor:
    """The function's result; for a batch without examples the tensor in whose shape and dtype it would be."""
    return tf.cond(tf.shape(like)[0] > 0, function, lambda: tf.identity(like))


def composite_examples(t: Any, start: int, stop: int) -> Any:
    """Returns some examples of an eager sparse or ragged tensor, all if there are fewer; None for other tensors."""
    if isinstance(t, tf.SparseTensor):
        size, *others = t.dense_shape.numpy()
        return tf.sparse.slice(t, [start, *(0 for _ in others)], [min(stop, size) - start, *others])
    return t[start:stop] if isinstance(t, tf.RaggedTensor) else None
