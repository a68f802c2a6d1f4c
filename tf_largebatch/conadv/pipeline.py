"""The train function of ConAdvModel: trains on one batch while the adversarial copies of the next one are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

_END = object()


class Steps(Protocol):
    """What the train function needs of the model."""

    distribute_strategy: tf.distribute.Strategy
    run_eagerly: bool
    jit_compile: bool
    steps_per_execution: int

    def get_ready(self, data: Any) -> None:
        """What must be done outside of the compiled step, given the first batch."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch, then trains on it."""

    def train_on_pair(self, data: Any, copies: Any) -> dict[str, Any]:
        """Trains on a batch and its adversarial copies."""

    def copies_of_present(self, data: Any) -> Any:
        """The adversarial copies of the batch of the present step."""

    def copies_of_next(self, data: Any) -> Any:
        """The adversarial copies of the batch of the next step; to be called before the update."""


class InFlight:
    """A batch that was drawn and attacked and not yet trained on, and how many batches `fit` will train on still.

    It outlives the train function, which Keras makes anew when a model is compiled.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self, calls_left: int | None = None) -> None:
        """Forgets the batch, before and after a `fit`, which will train on `calls_left` of them, None if unknown."""
        self.calls_left = calls_left
        self.hold(None, None, None)

    def hold(self, iterator: Any, batch: Any, copies: Any) -> None:
        """Keeps a batch, its copies, and the iterator it was drawn from."""
        self.iterator, self.batch, self.copies = iterator, batch, copies


class TrainFunction:
    """Called by `fit` once for each step, with the iterator of the data.

    A call trains on the batch in flight and, beside that, attacks the next one: the two share no tensor but the
    weights that both read. The first call of an epoch attacks the batch it trains on itself, the last one attacks none.
    So N batches make N calls and N updates. Batches are drawn here, outside the compiled step, so that the step which
    has no next batch is another program and no branch, which could not hold the replicas' communication.

    Args:
        model: what to run.
        in_flight: what one call leaves for the next.
        ahead: whether to attack ahead; else each step attacks its own batch first.
    """

    def __init__(self, model: Steps, in_flight: InFlight, ahead: bool) -> None:
        self._model = model
        self._in_flight = in_flight
        self._ahead = ahead
        self._sequential = self._compiled(model.train_step)
        self._first_copies = self._compiled(model.copies_of_present, logs=False)
        self._last = self._compiled(model.train_on_pair)
        self._concurrent = self._compiled(self._train_and_attack)

    def __call__(self, iterator: Iterable[Any]) -> dict[str, Any]:
        """Does `steps_per_execution` steps, fewer if the data end; StopIteration if there are no more data."""
        logs = None
        for _ in range(self._model.steps_per_execution):
            found = self._step(iterator)
            if found is None:
                break
            logs = found
        if logs is None:
            raise StopIteration
        return logs

    def _step(self, iterator: Any) -> dict[str, Any] | None:
        """One update; None if there are no data."""
        if not self._ahead or not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            batch = self._drawn(iterator)
            return None if batch is _END else self._sequential(batch)
        held = self._in_flight
        if held.iterator is not iterator:
            batch = self._drawn(iterator)
            if batch is _END:
                return None
            held.hold(iterator, batch, self._first_copies(batch))
        # Drawing a batch that will not be trained on would lose it, where the iterator is the user's generator.
        coming = _END if held.calls_left == 1 else self._drawn(iterator)
        if held.calls_left is not None:
            held.calls_left -= 1
        if coming is _END:
            logs = self._last(held.batch, held.copies)
            held.hold(None, None, None)
            return logs
        logs, copies = self._concurrent(held.batch, held.copies, coming)
        held.hold(iterator, coming, copies)
        return logs

    def _drawn(self, iterator: Any) -> Any:
        """The next batch, with None where Keras's data adapters have an empty optional; `_END` if there is none."""
        batch = next(iterator, _END)
        if batch is _END:
            return _END
        batch = keras.tree.map_structure(_tensor_or_none, batch)
        self._model.get_ready(batch)
        return batch

    @tf.autograph.experimental.do_not_convert
    def _train_and_attack(self, batch: Any, copies: Any, coming: Any) -> tuple[dict[str, Any], Any]:
        # The attack first: it reads the weights before the update writes them, and nothing else ties the two.
        coming_copies = self._model.copies_of_next(coming)
        return self._model.train_on_pair(batch, copies), coming_copies

    def _compiled(self, step: Any, logs: bool = True) -> Any:
        """The step on all replicas, compiled as the model is; logs are averaged over the replicas."""
        model = self._model

        @tf.autograph.experimental.do_not_convert
        def run(*arguments: Any) -> Any:
            found = model.distribute_strategy.run(tf.autograph.experimental.do_not_convert(step), args=arguments)
            if not logs:
                return found
            if isinstance(found, tuple):
                return self._averaged(found[0]), found[1]
            return self._averaged(found)

        if model.run_eagerly:
            return run
        return tf.function(run, reduce_retracing=True, jit_compile=model.jit_compile)

    def _averaged(self, logs: dict[str, Any]) -> dict[str, Any]:
        strategy = self._model.distribute_strategy
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}


def _tensor_or_none(value: Any) -> Any:
    if value is None or isinstance(value, tf.experimental.Optional):
        return None
    return tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
