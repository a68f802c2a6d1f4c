"""How Keras on TensorFlow runs the step of a wrapper: on variables, on each replica of a strategy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.training import delegation

__all__ = [
    "Trainer",
    "in_strategy",
    "number_of_replicas",
    "outside_of_the_step",
    "replica_may_be_empty",
    "scratch_scope",
    "synchronize",
]


class Trainer:
    """Mixed into a wrapper before keras.Model; the wrapper defines `training_step`."""

    model: keras.Model
    training_step: Any

    def train_step(self, data: Any) -> dict[str, Any]:
        """Makes one update; see the class."""
        return self.training_step(data)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Runs one batch of `evaluate`: the wrapped model's own `test_step` if it has one."""
        if not delegation.overrides(self.model, "test_step"):
            return super().test_step(data)  # type: ignore[misc]
        with delegation.compiled_as(self.model, self) as model:
            return model.test_step(data)

    def predict_step(self, data: Any) -> Any:
        """Runs one batch of `predict`: the wrapped model's own `predict_step` if it has one."""
        own = delegation.overrides(self.model, "predict_step")
        return self.model.predict_step(data) if own else super().predict_step(data)  # type: ignore[misc]


def number_of_replicas() -> int:
    """Returns how many replicas share a batch, each with a loss of its own."""
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def outside_of_the_step() -> Iterator[None]:
    """Within it nothing belongs to the step that is being traced: variables may be created."""
    with tf.init_scope():
        yield


@contextlib.contextmanager
def in_strategy(model: keras.Model) -> Iterator[None]:
    """Within it variables are those of the strategy under which the model trains."""
    if tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context():
        # A replica's step belongs to the strategy already, and cannot enter its scope again.
        yield
        return
    with tf.distribute.get_strategy().scope() if tf.distribute.has_strategy() else model.distribute_strategy.scope():
        yield


def synchronize(model: keras.Model) -> None:
    """Does nothing: on TensorFlow steps assign the variables themselves."""
    del model


def scratch_scope(collect_losses: bool = False) -> keras.StatelessScope:
    """Returns a scope to enter.

    Within it what layers assign is dropped, and `add_loss` works if losses are collected.
    """
    return keras.StatelessScope(collect_losses=collect_losses)


def replica_may_be_empty(batch_size: Any) -> bool:
    """Returns whether a last, small batch may leave a replica without examples."""
    return number_of_replicas() > 1 and not isinstance(batch_size, int)
