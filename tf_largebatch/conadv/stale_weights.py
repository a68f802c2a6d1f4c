"""Copies of a model's variables as they were some steps ago."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


class StaleWeights(keras.layers.Layer):
    """The variables of the last `staleness` steps, and the number of the present one.

    Before the update of step t, copy number k (from 0) holds theta_{t-1-k}; where that would be before the first step,
    theta_0. The copies and the counter are non-trainable weights: mirrored under a distribution strategy, and saved in
    every checkpoint.

    Args:
        staleness: how many steps back to keep, 0 or more.
        prefix: first part of the copies' paths.
        name: the layer's name.
    """

    def __init__(self, staleness: int, prefix: str, name: str) -> None:
        super().__init__(name=name, autocast=False)
        self.staleness = staleness
        self._prefix = prefix
        self._copied: list[Any] = []
        self._copies: list[list[Any]] = []

    def create(self, variables: Sequence[Any]) -> None:
        """Makes the counter, at 0, and the copies of these variables, at their present values."""
        with keras.name_scope(self._prefix, override_parent=""):
            self.step = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False, name="step")
            copies = [
                [self._copy_of(variable, lag, number) for number, variable in enumerate(variables)]
                for lag in range(1, self.staleness + 1)
            ]
        # Past Keras's tracking: the variables are others', and the copies have attributes of their own.
        object.__setattr__(self, "_copied", list(variables))
        object.__setattr__(self, "_copies", copies)

    def _copy_of(self, variable: Any, lag: int, number: int) -> Any:
        copy = self.add_weight(
            shape=variable.shape,
            dtype=variable.dtype,
            initializer="zeros",
            trainable=False,
            autocast=False,
            name=f"{variable.path.replace('/', '_')}_{lag}_ago",
        )
        # tf.train.Checkpoint finds attributes alone.
        setattr(self, f"copy_{number}_{lag}_ago", copy)
        return copy

    def forget(self) -> None:
        """Makes the present values those of all earlier steps, as they are before the first one."""
        for copies in self._copies:
            for copy, variable in zip(copies, self._copied, strict=True):
                copy.assign(variable)

    def ago(self, steps: int) -> list[tuple[Any, tf.Tensor]]:
        """The variables as they were `steps` steps ago, 1 to `staleness`, as pairs of variable and value."""
        copies = self._copies[steps - 1]
        return [(v, tf.convert_to_tensor(copy.value)) for v, copy in zip(self._copied, copies, strict=True)]

    def advance(self) -> None:
        """Counts the step and takes the present values as those of one step ago; to be called before the update.

        Every replica writes its own copy with its own values: nothing is sent between them.
        """
        newer = [self._copied, *self._copies[:-1]] if self._copies else []

        def on_all_replicas(strategy: tf.distribute.Strategy) -> None:
            # The oldest first: each is overwritten once it has been read.
            for sources, targets in reversed(list(zip(newer, self._copies, strict=True))):
                for source, target in zip(sources, targets, strict=True):
                    strategy.extended.update(target.value, _assign, args=(source.value,), group=False)
            strategy.extended.update(self.step.value, _increment, group=False)

        _in_cross_replica_context(on_all_replicas)


def _assign(target: tf.Variable, source: tf.Variable) -> tf.Operation:
    return target.assign(tf.convert_to_tensor(source), read_value=False)


def _increment(step: tf.Variable) -> tf.Operation:
    return step.assign_add(tf.ones((), step.dtype), read_value=False)


def _in_cross_replica_context(function: Callable[[tf.distribute.Strategy], None]) -> None:
    context = tf.distribute.get_replica_context()
    if context is None:
        function(tf.distribute.get_strategy())
    else:
        context.merge_call(function)
