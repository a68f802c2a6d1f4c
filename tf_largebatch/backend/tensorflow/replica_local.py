"""Replicas of `tf.distribute`: a value for each, and tensors that one all-reduce can take together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


class ReplicaLocal:
    """A value for each replica, found again by the replica's number.

    The thread would not do as a key: `LossScaleOptimizer` leaves the replicas' threads of `MirroredStrategy` by
    `merge_call` and calls the inner optimizer in new ones, while the first wait inside their `with` block.
    """

    def __init__(self) -> None:
        self._values: dict[int | None, Any] = {}

    @contextlib.contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Makes `value` that of this replica inside the `with` block."""
        key = _replica_number()
        previous = self._values.get(key)
        self._values[key] = value
        try:
            yield
        finally:
            self._values[key] = previous

    def get(self) -> Any:
        """Returns the value of this replica, or None."""
        return self._values.get(_replica_number())


def for_one_all_reduce(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the tensors as new ones in one dtype, which holds all of theirs.

    `tf.distribute` packs what it reduces together into one tensor, which has one dtype. It also takes a tensor that is
    the same object on every replica, a constant gradient say, for one that belongs to no replica. With one replica,
    which reduces nothing, the tensors are returned as they are.

    Args:
        tensors: Dense floating tensors.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return list(tensors)
    widest = keras.backend.result_type(*(tensor.dtype.name for tensor in tensors))
    return [tf.identity(tf.cast(tensor, widest)) for tensor in tensors]


def _replica_number() -> int | None:
    context = tf.distribute.get_replica_context()
    # A tensor without static value on a TPU, where one trace serves all replicas.
    number = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return None if number is None else int(number)
