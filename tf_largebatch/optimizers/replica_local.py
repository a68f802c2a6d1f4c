"""How measured gradient norms reach the optimizer: past Keras's `apply`, which knows only of gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

Norms = Mapping[str, Any] | Sequence[Any]


class ReplicaLocal:
    """A value for each replica, found again by the replica's number.

    Not by its thread: `LossScaleOptimizer` leaves the replicas' threads of `MirroredStrategy` by
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
        """The value of this replica, or None."""
        return self._values.get(_replica_number())


def for_one_all_reduce(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The tensors in one dtype, the widest among them: `tf.distribute` packs what it reduces together into one tensor.

    With one replica, which reduces nothing, they are as they were.

    Args:
        tensors: Dense floating tensors, one of them at least in float32 or float64.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return list(tensors)
    widest = max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.size)
    return [tf.cast(tensor, widest) for tensor in tensors]


def _replica_number() -> int | None:
    context = tf.distribute.get_replica_context()
    # A tensor without static value on a TPU, where one trace serves all replicas.
    number = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return None if number is None else int(number)


def measured_norms(handed: Norms, paths: Sequence[str], needed: Sequence[int]) -> dict[int, tf.Tensor]:
    """Sorts the norms handed over by variable.

    Args:
        handed: `{path: norm}`, or a norm or None for each trained variable.
        paths: The paths of the trained variables.
        needed: The numbers of those that must have a norm.

    Returns:
        `{number of the variable: norm}`, float32 scalars.

    Raises:
        ValueError: If one of `needed` has no norm or shares its path, a norm is no scalar, or a list has not
            one entry for each variable.
    """
    if isinstance(handed, Mapping):
        shared = sorted({paths[index] for index in needed if paths.count(paths[index]) > 1})
        if shared:
            raise ValueError(
                f"Gradient norms are handed over by path, but several trained variables have the paths "
                f"{shared}: hand over a list, or give the layers different names."
            )
        handed = [handed.get(path) for path in paths]
    if len(handed) != len(paths):
        raise ValueError(
            f"Received {len(handed)} measured gradient norms for {len(paths)} trained variables: hand over "
            "one (or None) for each."
        )
    missing = [paths[index] for index in needed if handed[index] is None]
    if missing:
        raise ValueError(
            f"The measured gradient norms lack {missing}, to which layer-wise rates apply: measure them, or "
            "exclude them with `exclude_from_layer_adaptation`."
        )
    norms = {index: tf.cast(norm, tf.float32) for index, norm in enumerate(handed) if norm is not None}
    for index, norm in norms.items():
        if norm.shape.rank != 0:
            raise ValueError(
                f"A measured gradient norm must be a scalar; that of {paths[index]!r} has shape {norm.shape}."
            )
    return norms
