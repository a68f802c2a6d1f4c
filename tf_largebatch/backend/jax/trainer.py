"""How Keras on JAX runs the step of a wrapper: as a function of the values of all variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

from tf_largebatch import keras_internals
from tf_largebatch.backend.jax.distribution import (
    devices_of_a_process,
    explaining_indivisible_batches,
    indivisible_message,
)
from tf_largebatch.backend.jax.micro_batches import batch_size_of
from tf_largebatch.backend.jax.processes import agree, explaining_lost_processes, number
from tf_largebatch.backend.jax.scopes import inner_scope
from tf_largebatch.backend.jax.sized_step import SizedTrainFunction, explaining_out_of_memory
from tf_largebatch.training import delegation
from tf_largebatch.training.automatic_size import AUTO

__all__ = [
    "Trainer",
    "build_optimizer",
    "in_strategy",
    "number_of_replicas",
    "outside_of_the_step",
    "replica_may_be_empty",
    "scratch_scope",
    "specs_of",
    "synchronize",
]


class Trainer:
    """Mixed into a wrapper before keras.Model; the wrapper defines `training_step`.

    Keras's trainer on JAX passes the state through every step: the values of the trainable and the non-trainable
    variables, of the optimizer's, and of the metrics'. Within a step the wrapper's code reads and assigns variables as
    on TensorFlow; a `keras.StatelessScope` has them stand for traced values.
    """

    model: keras.Model
    training_step: Any
    optimizer: Any
    trainable_variables: Any
    metrics_variables: Any
    _build_wrapped: Any
    check_labels: Any
    _untracked_variables: Any
    _build_untracked: Any
    evaluation_step: Any
    outputs_in_micro_batches: Any
    micro_batch_size: Any
    run_eagerly: bool
    jit_compile: bool
    train_function: Any
    # The step that was traced last: the function, the specs of its arguments, the number of examples.
    traced_step: tuple[Callable[..., Any], Any, int] | None = None

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The layers' state, and what the wrapper keeps beside them, which a step must carry too."""
        return [*super().non_trainable_variables, *self._untracked_variables()]  # type: ignore[misc]

    def train_step(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        """Makes one update: a pure function, which `jax.jit` and `jax.lax.scan` take.

        Args:
            state: The values of `trainable_variables`, `non_trainable_variables`, `optimizer.variables` and
                `metrics_variables`, a list each.
            data: Inputs, targets and weights of a batch.

        Returns:
            The logs and the new state.
        """
        self.note_step(self._one_step, (state, data), data)
        return self._one_step(state, data)

    def make_train_function(self, force: bool = False) -> None:
        """As `keras.Model.make_train_function`; with `micro_batch_size="auto"` the first step chooses the size."""
        if self.micro_batch_size != AUTO:
            super().make_train_function(force)  # type: ignore[misc]
        elif self.train_function is None or force:
            self.train_function = SizedTrainFunction(self)

    def note_step(self, step: Callable[..., Any], arguments: Sequence[Any], data: Any) -> None:
        """Notes what is being traced, so that an error can say what would fit.

        Args:
            step: What is compiled.
            arguments: What it is called with.
            data: The batch.
        """
        specs = jax.tree.map(lambda t: jax.ShapeDtypeStruct(np.shape(t), t.dtype), tuple(arguments))
        object.__setattr__(self, "traced_step", (step, specs, batch_size_of(data)))

    def traced_batch_size(self) -> int | None:
        """Returns the number of examples of the batch for which a step was last traced; None if none was."""
        return None if self.traced_step is None else self.traced_step[2]

    def _one_step(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        return self.stateless(self.training_step, state, data)

    def test_step(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        """Runs one batch of `evaluate`: the wrapped model's own `test_step` if it has one."""
        if not delegation.overrides(self.model, "test_step"):
            outputs, _ = self.stateless(self.outputs_in_micro_batches, state, data)
            if outputs is not None:
                return self.stateless(self.evaluation_step, state, data, outputs)
            return super().test_step(state, data)  # type: ignore[misc]
        own = self.trainable_variables, self.non_trainable_variables, self.metrics_variables
        with delegation.compiled_as(self.model, self) as model:
            theirs = model.trainable_variables, model.non_trainable_variables, model.metrics_variables
            logs, new = model.test_step(_rearranged(state, own, theirs), data)
        return logs, _updated(state, own, theirs, new)

    def predict_step(self, state: Any, data: Any) -> tuple[Any, Any]:
        """Runs one batch of `predict`: the wrapped model's own `predict_step` if it has one."""
        if not delegation.overrides(self.model, "predict_step"):
            return super().predict_step(state, data)  # type: ignore[misc]
        own = self.trainable_variables, self.non_trainable_variables
        theirs = self.model.trainable_variables, self.model.non_trainable_variables
        outputs, non_trainable = self.model.predict_step(_rearranged(state, own, theirs), data)
        return outputs, _updated(state, own, theirs, (None, non_trainable))[1]

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does."""
        arguments = delegation.fit_arguments(args, kwargs)
        check_divisible(arguments["x"], arguments["batch_size"], arguments["steps_per_epoch"])
        with (
            explaining_out_of_memory(self),
            explaining_lost_processes(),
            explaining_indivisible_batches(),
            self._giving_values_back(),
        ):
            check_equal_processes(arguments)
            return super().fit(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does."""
        with explaining_lost_processes(), explaining_indivisible_batches(), self._giving_values_back():
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does."""
        with explaining_lost_processes(), explaining_indivisible_batches(), self._giving_values_back():
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _giving_values_back(self) -> Iterator[None]:
        """Within it an error leaves the variables with the values that they had before the step that failed."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # values that a failed step has consumed
                self.jax_state_sync()  # type: ignore[attr-defined]
            raise

    def _get_jax_state(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As Keras's, which empties the variables before the first step: their values are noted."""
        state = super()._get_jax_state(*args, **kwargs)  # type: ignore[misc]
        keras_internals.note_handed_out_state(self, state, *args, **kwargs)
        return state

    def stateless(self, function: Callable[..., Any], state: Any, *args: Any) -> tuple[Any, Any]:
        """Calls a function that reads and assigns variables as a function of their values.

        Args:
            function: What to call with `args`.
            state: As for `train_step`; without the optimizer's variables for `test_step`.
            *args: Nested arrays.

        Returns:
            What the function returns, and the new state.
        """
        of_optimizer = (self.optimizer.variables,) if len(state) == 4 else ()
        groups = (self.trainable_variables, self.non_trainable_variables, *of_optimizer, self.metrics_variables)
        # A callback may have begun to record something since the last step, which is not yet part of the state.
        mapping = [
            pair
            for variables, values in zip(groups, state, strict=True)
            for pair in zip(variables, values, strict=False)
        ]
        with keras.StatelessScope(mapping) as scope:
            result = function(*args)
        new = []
        for variables in groups:
            values = [scope.get_current_value(variable) for variable in variables]
            new.append([v.value if value is None else value for v, value in zip(variables, values, strict=True)])
        return result, tuple(new)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds what is not built, before Keras traces a step: the wrapped model under its own names.

        After `compile` Keras draws a batch to build the loss. Its labels are checked, as TensorFlow's kernels do.
        """
        loss = keras_internals.compiled_loss(self)
        built = all(layer.built for layer in keras_internals.layers_within(self.model)) and (loss is None or loss.built)
        if data_batch is None and not built:
            for _, _, batches in iterator:
                data_batch = batches[0] if isinstance(batches, list | tuple) else next(batches)
                break
        if data_batch is not None:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data_batch)
            self._build_wrapped(x)
            self.check_labels(y, sample_weight)
        super()._symbolic_build(iterator, data_batch)  # type: ignore[misc]
        self._build_untracked()


def check_divisible(x: Any, batch_size: int | None, steps: int | None) -> None:
    """Raises ValueError if the devices divide not every batch that arrays make."""
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    devices = devices_of_a_process()
    if devices == 1 or not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return
    size, examples = batch_size or 32, int(leaves[0].shape[0])
    last = 0 if steps is not None else examples % size
    if min(size, examples) % devices:
        raise ValueError(indivisible_message(f"batch_size={size}"))
    if last % devices:
        raise ValueError(indivisible_message(f"{examples} examples with batch_size={size}, a last batch of {last}"))


def check_equal_processes(arguments: dict[str, Any]) -> None:
    """Raises ValueError if several processes call `fit` so that one would take other steps than another.

    Args:
        arguments: Those of `fit`, by name.
    """
    if number() == 1 or keras.distribution.distribution() is None:
        return
    sizes = {int(leaf.shape[0]) for leaf in keras.tree.flatten(arguments["x"]) if getattr(leaf, "shape", ())}
    values = {name: arguments[name] for name in ("batch_size", "epochs", "initial_epoch", "steps_per_epoch")}
    values["number of examples"] = sorted(sizes)
    agree(values, "give each an equal share of every batch, and let all resume from the same checkpoint")


def _rearranged(state: Any, own: Sequence[Any], theirs: Sequence[Any]) -> tuple[list[Any], ...]:
    """Returns the values of a wrapped model's variables, out of the wrapper's state."""
    pairs = [zip(*group, strict=True) for group in zip(own, state, strict=True)]
    value_of = {id(v): value for group in pairs for v, value in group}
    return tuple([value_of[id(v)] for v in variables] for variables in theirs)


def _updated(state: Any, own: Sequence[Any], theirs: Sequence[Any], new: Any) -> tuple[list[Any], ...]:
    """Returns the wrapper's state with the new values of the wrapped model's variables."""
    value_of = {
        id(v): value
        for vs, values in zip(theirs, new, strict=True)
        for v, value in zip(vs, values if values is not None else (), strict=False)
    }
    pairs = zip(own, state, strict=True)
    return tuple([value_of.get(id(v), value) for v, value in zip(*pair, strict=True)] for pair in pairs)


def build_optimizer(model: keras.Model) -> None:
    """Does nothing: on JAX Keras builds the optimizer before a step is traced."""
    del model


def number_of_replicas() -> int:
    """Returns how many replicas share a batch, each with a loss of its own: 1, since arrays span all devices."""
    return 1


@contextlib.contextmanager
def outside_of_the_step() -> Iterator[None]:
    """Does nothing: on JAX variables are created before a step is traced."""
    yield


@contextlib.contextmanager
def in_strategy(model: keras.Model) -> Iterator[None]:
    """Does nothing: Keras creates variables in the layout of its distribution."""
    del model
    yield


def synchronize(model: keras.Model) -> None:
    """Gives the variables the values that the last step has returned, which `fit` does at the end of an epoch only."""
    model.jax_state_sync()


def scratch_scope(collect_losses: bool = False) -> keras.StatelessScope:
    """Returns a scope to enter.

    Within it what layers assign is dropped, and `add_loss` works if losses are collected.
    """
    return inner_scope(collect_losses=collect_losses)


def specs_of(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns shapes and dtypes of what a function returns for arrays like these, from a trace, which runs nothing."""
    return jax.eval_shape(function, x)


def replica_may_be_empty(batch_size: Any) -> bool:
    """Returns whether a last, small batch may leave a replica without examples: never, see `number_of_replicas`."""
    del batch_size
    return False
