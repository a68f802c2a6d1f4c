"""The train function of ConAdvModel: trains on one batch while the next one is attacked."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_largebatch.backend.tensorflow.sized_step import check_processes, first_that_fits
from tf_largebatch.conadv.in_flight import InFlight
from tf_largebatch.conadv.step_parts import Steps
from tf_largebatch.training.automatic_size import AUTO

_END = object()
_ENDLESS = sys.maxsize


class BackendSteps(Steps, Protocol):
    """What the train function needs of the model on TensorFlow."""

    distribute_strategy: tf.distribute.Strategy

    def get_ready(self, data: Any) -> None:
        """Does what must be done outside of the compiled step, given a batch."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch, then trains on it."""

    def step_logs(self) -> dict[str, Any]:
        """Returns the logs after a step."""


class TrainFunction:
    """Called by `fit` for each execution of one or several steps, with the iterator of the data.

    A step trains on the batch in flight, draws the next one and attacks it: training and attack share no tensor but the
    weights that both read. So N batches make N updates. One program does every step. The first batch of an epoch is
    attacked by a program of its own; where the data end, the last step attacks what it trains on once more, and the
    result is dropped: cheaper than another program, and a branch could not hold the replicas' communication.

    Args:
        model: What to run.
        in_flight: What one call leaves for the next.
        ahead: Whether to attack the next batch during a step; else each step attacks its own batch first.
    """

    def __init__(self, model: BackendSteps, in_flight: InFlight, ahead: bool) -> None:
        self._model = model
        self._in_flight = in_flight
        self._ahead = ahead
        self._sizes_known: set[str] = set()
        if model.micro_batch_size == AUTO:
            check_processes(model)
        self._make()

    def _make(self) -> None:
        """Makes the functions anew, which are traced when they are called."""
        model = self._model
        self._first_attack = self._compiled(lambda batch: self._on_replicas(model.attack_present, batch))
        self._one_step = self._compiled(self.step, jit_alone=True)
        self._alone = self._compiled(lambda batch: self._averaged(self._on_replicas(model.train_step, batch)))
        self._steps = self._compiled(self._run, jit=False)

    def __call__(self, iterator: Iterable[Any]) -> dict[str, Any]:
        """Does `steps_per_execution` steps, fewer if the data end; StopIteration if there are no more data."""
        if self._in_flight.aside:
            batch = self._drawn(iterator)
            self._find_size(batch)
            return self._alone(batch)
        held = self._in_flight
        spec = keras.tree.map_structure(_none_for_optional, iterator.element_spec)  # type: ignore[attr-defined]
        if held.iterator is not iterator:
            batch = self._drawn(iterator)
            self._find_size(batch)
            held.hold(iterator, batch, self._first(batch, spec) if self._ahead else None)
        left = _ENDLESS if held.batches_left is None else held.batches_left
        arguments = held.batch, held.adversarial, iterator, tf.constant(left, tf.int64)
        logs, batch, adversarial, goes_on, done = self._of_any_size(self._steps, spec, arguments)(*arguments)
        if held.batches_left is not None:
            held.batches_left -= int(done)
        held.hold(*((iterator, batch, adversarial) if goes_on else (None, None, None)))
        return logs

    @tf.autograph.experimental.do_not_convert
    def step(self, batch: Any, adversarial: Any, coming: Any) -> tuple[dict[str, Any], Any]:
        """Does one step on all replicas and returns the logs, and the adversarial images of the coming batch."""
        if not self._ahead:
            return self._averaged(self._on_replicas(self._model.train_step, batch)), None
        logs, adversarial = self._on_replicas(self._train_and_attack, batch, adversarial, coming)
        return self._averaged(logs), adversarial

    def _find_size(self, batch: Any) -> None:
        """Finds the size of micro-batches, if the model asks for it, by a step that is undone: it loses no batch."""
        shapes = str(keras.tree.map_structure(lambda t: None if t is None else str(getattr(t, "shape", t)), batch))
        if self._model.micro_batch_size != AUTO or shapes in self._sizes_known:
            return

        def make() -> Any:
            self._make()
            step = self._compiled(self.step)
            return lambda batch: step(batch, self._first_attack(batch) if self._ahead else None, batch)

        first_that_fits(self._model, batch, make, batch, undo=True)
        self._make()
        self._sizes_known.add(shapes)

    def _train_and_attack(self, batch: Any, adversarial: Any, coming: Any) -> tuple[dict[str, Any], Any]:
        # The attack first: it reads the weights before the update writes them, and nothing else ties the two.
        images = self._model.attack_next(coming)
        return self._model.train_on_pair(batch, adversarial), images

    def _run(self, batch: Any, adversarial: Any, iterator: Any, left: tf.Tensor) -> tuple[Any, ...]:
        """Does the steps of one call.

        Returns the logs, the batch in flight, its adversarial images, whether there is one, and the number of steps.
        """
        steps = self._model.steps_per_execution
        if steps == 1:
            coming, goes_on = self._draw(iterator, batch, left > 1)
            logs, adversarial = self._one_step(batch, adversarial, coming)
            return logs, coming, adversarial, goes_on, tf.ones((), tf.int64)

        pack, flat = _packing(batch)

        def body(done: tf.Tensor, goes_on: tf.Tensor, batch: Any, adversarial: Any) -> tuple[Any, ...]:
            del goes_on
            coming, goes_on = self._draw(iterator, pack(batch), left > done + 1)
            _, images = self._one_step(pack(batch), adversarial[0] if self._ahead else None, coming)
            return done + 1, goes_on, flat(coming), [images] if self._ahead else []

        done, goes_on, batch, adversarial = tf.while_loop(
            lambda done, goes_on, *_: tf.logical_and(done < steps, goes_on),
            body,
            [tf.zeros((), tf.int64), tf.constant(True), flat(batch), [adversarial] if self._ahead else []],
            parallel_iterations=1,
        )
        logs = self._averaged(self._on_replicas(self._model.step_logs))
        return logs, pack(batch), adversarial[0] if self._ahead else None, goes_on, done

    def _draw(self, iterator: Any, batch: Any, wanted: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Returns the next batch and True; where there is none or none is wanted, a stand-in and False.

        Drawing a batch that will not be trained on would lose it, where the iterator is the user's generator.
        """
        pack, flat = _packing(batch)

        def draw() -> tuple[tf.Tensor, list[Any]]:
            optional = iterator.get_next_as_optional()
            there_is = optional.has_value()
            return there_is, tf.cond(there_is, lambda: flat(optional.get_value()), stand_in)

        def stand_in() -> list[Any]:
            return [self._stand_in(t) for t in flat(batch)]

        goes_on, coming = tf.cond(wanted, draw, lambda: (tf.constant(False), stand_in()))
        return pack(coming), goes_on

    def _stand_in(self, t: Any) -> Any:
        """Returns one example where the program takes any number, else all: their attack costs time and is dropped."""
        of_any_size = isinstance(t, tf.Tensor) and not tf.executing_eagerly() and t.shape.rank and t.shape[0] is None
        return t[:1] if of_any_size and not self._model.jit_compile else t

    def _drawn(self, iterator: Any) -> Any:
        """Returns the next batch, with None where Keras's data adapters have an empty optional."""
        batch = next(iterator, _END)
        if batch is _END:
            raise StopIteration
        batch = keras.tree.map_structure(_tensor_or_none, batch)
        self._model.get_ready(batch)
        return batch

    def _first(self, batch: Any, spec: Any) -> Any:
        """Returns the adversarial images of the first batch."""
        return self._of_any_size(self._first_attack, spec, (batch,))(batch)

    def _of_any_size(self, function: Any, spec: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the function, traced for batches of the data's spec: a smaller last batch needs no other trace."""
        if not self._model.run_eagerly and not function.experimental_get_tracing_count():
            others = list(arguments[1:])
            if others and self._ahead:
                others[0] = self._first_attack.get_concrete_function(spec).structured_outputs
                others[0] = tf.nest.map_structure(tf.type_spec_from_value, others[0])
            function.get_concrete_function(spec, *others)
        return function

    def _on_replicas(self, step: Any, *arguments: Any) -> Any:
        def of_tensors(*arguments: Any) -> Any:
            # A metric of Keras 3.12 that has no value yet is a number of Python, which no strategy reduces.
            return tf.nest.map_structure(lambda v: tf.constant(v) if isinstance(v, float) else v, step(*arguments))

        return self._model.distribute_strategy.run(tf.autograph.experimental.do_not_convert(of_tensors), args=arguments)

    def _compiled(self, function: Any, jit: bool = True, jit_alone: bool = False) -> Any:
        """Returns the function, compiled as the model is; `jit_alone` if only XLA makes it a program of its own."""
        model = self._model
        function = tf.autograph.experimental.do_not_convert(function)
        if model.run_eagerly or (jit_alone and not model.jit_compile):
            return function
        return tf.function(function, reduce_retracing=True, jit_compile=model.jit_compile if jit else None)

    def _averaged(self, logs: dict[str, Any]) -> dict[str, Any]:
        strategy = self._model.distribute_strategy
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}


def _packing(batch: Any) -> tuple[Any, Any]:
    """Functions that pack a batch like this one from the list of its tensors, and that list its tensors."""
    present = [leaf is not None for leaf in tf.nest.flatten(batch)]

    def pack(tensors: Any) -> Any:
        rest = iter(tensors)
        return tf.nest.pack_sequence_as(batch, [next(rest) if there else None for there in present])

    def flat(batch: Any) -> list[Any]:
        return [leaf for leaf, there in zip(tf.nest.flatten(batch), present, strict=True) if there]

    return pack, flat


def _none_for_optional(spec: Any) -> Any:
    return None if isinstance(spec, tf.OptionalSpec) or type(spec).__name__ == "NoneTensorSpec" else spec


def _tensor_or_none(value: Any) -> Any:
    if value is None or isinstance(value, tf.experimental.Optional):
        return None
    return tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
