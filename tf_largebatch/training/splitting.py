"""A batch split into micro-batches: what is the same on every backend."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

from tf_largebatch.norms.shapes import Size


def number_of_micro_batches(batch_size: Size, micro_batch_size: Size) -> Size:
    """Returns how many micro-batches a batch makes. The last one may be smaller; an empty batch makes none."""
    return -(-batch_size // micro_batch_size)


class SplitBatch(abc.ABC):
    """A batch split into micro-batches.

    Args:
        data: Nested tensors with the examples on axis 0, or None.
        batch_size: Number of examples in `data`, B.
        size: Number of examples in a micro-batch, m.

    Attributes:
        data: The batch.
        number: Number of micro-batches.
    """

    def __init__(self, data: Any, batch_size: Size, size: Size) -> None:
        self.data, self._batch_size, self._size = data, batch_size, size
        self.number = number_of_micro_batches(batch_size, size)

    @abc.abstractmethod
    def added(
        self,
        run: Callable[[Any, Any], tuple[Sequence[Any], Sequence[Any]]],
        zeros: Sequence[Any],
        specs: Sequence[Any] = (),
        state: Sequence[Any] = (),
    ) -> tuple[list[Any], list[Any]]:
        """Runs one micro-batch after the other, in one compiled loop, and adds up what they give.

        Args:
            run: Of a micro-batch and its share of the examples, m_j / B: what to add up, dense tensors or None, and
                what to collect, tensors with the examples on axis 0.
            zeros: A zero for each sum, in its shape and dtype.
            specs: For each tensor to collect the shape and dtype that it has for the batch.
            state: Variables that `run` may assign. JAX carries them through the loop; others are found too, by tracing
                `run` once more.

        Returns:
            The sums and the collected tensors.
        """

    @abc.abstractmethod
    def mapped(self, function: Callable[[Any, Any], Any], like: Any) -> Any:
        """Returns the results of a function of each micro-batch and its number; see `mapped_over_micro_batches`."""
