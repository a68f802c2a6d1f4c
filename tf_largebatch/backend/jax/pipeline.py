"""The train function of ConAdvModel: trains on one batch while the next one is attacked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import keras

from tf_largebatch.backend.jax.sized_step import SizedSteps
from tf_largebatch.conadv.in_flight import InFlight
from tf_largebatch.conadv.step_parts import Steps
from tf_largebatch.training.automatic_size import AUTO


class BackendSteps(Steps, Protocol):
    """What the train function needs of the model on JAX."""

    examples_at_a_time: int | None

    def note_step(self, step: Callable[..., Any], arguments: Any, data: Any) -> None:
        """Notes what is being traced, so that an error can say what would fit."""

    def stateless(self, function: Callable[..., Any], state: Any, *args: Any) -> tuple[Any, Any]:
        """Calls a function that reads and assigns variables as a function of their values."""

    def settings(self) -> Any:
        """Returns the values of the arguments that may change without a new trace."""

    def use_settings(self, values: Any) -> None:
        """Makes the code that follows, within a step, use these values."""

    def training_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch, then trains on it."""


class TrainFunction:
    """Called by `fit` for each execution of one or several steps, with the model's state and the iterator of the data.

    A step trains on the batch in flight and attacks the next one: one program, in which training and attack share no
    value but the weights that both read. So N batches make N updates. The first batch of an epoch is attacked by a
    program of its own; where the data end, the last step attacks what it trains on once more, and the result is
    dropped: cheaper than another program.

    The adversarial images of the next batch are a result of one step and an argument of the next. They are no part of
    the model's state, because that has one shape and batches may have several: each pair of sizes is compiled, as Keras
    compiles the plain step for each size. A saved state need not hold them, since a resumed run makes them again.

    Args:
        model: What to run.
        in_flight: What one call leaves for the next.
        ahead: Whether to attack the next batch during a step; else each step attacks its own batch first.
    """

    def __init__(self, model: BackendSteps, in_flight: InFlight, ahead: bool) -> None:
        self._model = model
        self._in_flight = in_flight
        self._ahead = ahead
        self._programs: dict[tuple[Callable[..., Any], int | None], Any] = {}
        self._sized = SizedSteps(model)

    def __call__(self, state: Any, iterator: Iterator[Any]) -> tuple[dict[str, Any], Any]:
        """Does `steps_per_execution` steps, fewer if the data end; StopIteration if there are no more data."""
        held = self._in_flight
        if held.aside:  # train_on_batch
            batch = _arrays(next(iterator))
            self._choose_size(state, batch)
            return self._run(self.alone, state, batch)
        if held.iterator is not iterator:
            batch = _arrays(next(iterator))
            self._choose_size(state, batch)
            held.hold(iterator, batch, self._run(self.attack, state, batch) if self._ahead else None)
        logs: dict[str, Any] = {}
        for _ in range(self._model.steps_per_execution):
            coming = self._draw(iterator)
            if coming is not None:
                self._choose_size(state, coming)
            if self._ahead:
                following = held.batch if coming is None else coming
                logs, state, images = self._run(self.step, state, held.batch, held.adversarial, following)
            else:
                (logs, state), images = self._run(self.alone, state, held.batch), None
            if held.batches_left is not None:
                held.batches_left -= 1
            if coming is None:
                held.hold(None, None, None)
                break
            held.hold(iterator, coming, images)
        return logs, state

    def step(self, state: Any, settings: Any, batch: Any, adversarial: Any, coming: Any) -> tuple[Any, Any, Any]:
        """Does one step and returns the logs, the new state, and the adversarial images of the coming batch."""
        model = self._model
        model.note_step(self.step, (state, settings, batch, adversarial, coming), batch)

        def body() -> tuple[dict[str, Any], Any]:
            model.use_settings(settings)
            # The attack first: it reads the weights before the update assigns them, and nothing else ties the two.
            images = model.attack_next(coming)
            return model.train_on_pair(batch, adversarial), images

        (logs, images), state = model.stateless(body, state)
        return logs, state, images

    def alone(self, state: Any, settings: Any, batch: Any) -> tuple[dict[str, Any], Any]:
        """Does one step that attacks its own batch first and returns the logs and the new state."""
        model = self._model
        model.note_step(self.alone, (state, settings, batch), batch)

        def body() -> dict[str, Any]:
            model.use_settings(settings)
            return model.training_step(batch)

        return model.stateless(body, state)

    def attack(self, state: Any, settings: Any, batch: Any) -> Any:
        """Returns the adversarial images of the present step's batch."""
        model = self._model

        def body() -> Any:
            model.use_settings(settings)
            return model.attack_present(batch)

        return model.stateless(body, state)[0]

    def _run(self, function: Callable[..., Any], state: Any, *arguments: Any) -> Any:
        """Calls one of the functions above, compiled as the model is."""
        eagerly = self._model.run_eagerly or not self._model.jit_compile
        program = function if eagerly else self._program(function, state)
        return program(state, self._model.settings(), *arguments)

    def _choose_size(self, state: Any, batch: Any) -> None:
        """Chooses the size of micro-batches by the memory of a step, if the model asks for it."""
        if self._model.micro_batch_size != AUTO:
            return
        settings, function, rest = self._model.settings(), self.alone, (batch,)
        if self._ahead:
            spec = jax.eval_shape(self.attack, state, settings, batch)
            function, rest = self.step, (batch, jnp.zeros(spec.shape, spec.dtype), batch)  # type: ignore[assignment]
        self._sized.choose(batch, lambda _: self._program(function, state), (state, settings, *rest))

    def _program(self, function: Callable[..., Any], state: Any) -> Any:
        key = function, self._model.examples_at_a_time
        if key not in self._programs:
            self._programs[key] = self._compiled(function, state)
        return self._programs[key]

    def _compiled(self, function: Callable[..., Any], state: Any) -> Callable[..., Any]:
        # Of its own: jits of one function share what was traced, whatever the size of micro-batches.
        own = functools.partial(function)
        if function == self.attack:
            return jax.jit(own)
        shardings: Any = None
        if keras.distribution.distribution() is not None:
            of_state = jax.tree.map(lambda value: value.sharding, state)
            shardings = (None, of_state, None) if function == self.step else (None, of_state)
        return jax.jit(own, donate_argnums=0, out_shardings=shardings)

    def _draw(self, iterator: Iterator[Any]) -> Any:
        """Returns the next batch.

        It is None where there is none, or where none will be trained on: a generator would lose it.
        """
        left = self._in_flight.batches_left
        if left is not None and left <= 1:
            return None
        batch = next(iterator, None)
        return None if batch is None else _arrays(batch)


def _arrays(batch: Any) -> Any:
    """Returns a batch as arrays on the device, which two steps read."""
    return keras.tree.map_structure(lambda t: None if t is None else jnp.asarray(t), batch)
