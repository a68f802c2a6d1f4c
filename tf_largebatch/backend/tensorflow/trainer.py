"""How Keras on TensorFlow runs the step of a wrapper: on variables, on each replica of a strategy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch import keras_internals
from tf_largebatch.backend.tensorflow.micro_batches import batch_size_of
from tf_largebatch.backend.tensorflow.sized_step import SizedTrainFunction, explaining_out_of_memory
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
    """Mixed into a wrapper before keras.Model; the wrapper defines `training_step`."""

    model: keras.Model
    training_step: Any
    evaluation_step: Any
    outputs_in_micro_batches: Any
    micro_batch_size: Any
    train_function: Any
    # The number of examples of the batch for which a step was traced last, a tensor where the trace does not know it.
    _traced_size: Any = None

    def train_step(self, data: Any) -> dict[str, Any]:
        """Makes one update; see the class."""
        object.__setattr__(self, "_traced_size", batch_size_of(data))
        return self.training_step(data)

    def make_train_function(self, force: bool = False) -> Any:
        """As `keras.Model.make_train_function`; with `micro_batch_size="auto"` the first step finds the size."""
        if self.micro_batch_size != AUTO:
            return super().make_train_function(force)  # type: ignore[misc]
        if self.train_function is None or force:
            self.train_function = SizedTrainFunction(self, self._step_of_keras)
        return self.train_function

    def _step_of_keras(self) -> Callable[[Any], Any]:
        """Keras's train function, made anew, as a function of one batch."""
        own = self.train_function
        super().make_train_function(force=True)  # type: ignore[misc]
        of_keras, self.train_function = self.train_function, own
        return lambda data: of_keras(iter([data]))

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`."""
        with explaining_out_of_memory(self):
            return super().fit(*args, **kwargs)  # type: ignore[misc]

    def traced_batch_size(self) -> int | None:
        """The number of examples of the batch for which a step was last traced; None if it is not known."""
        return self._traced_size if isinstance(self._traced_size, int) else None

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """As `keras.Model.compute_loss`; the metrics of several losses are created outside of the traced step."""
        loss = keras_internals.compiled_loss(self)
        if loss is not None and not loss.built and _may_create(y, y_pred, sample_weight):
            keras_internals.build_compile_loss(loss, y, y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)  # type: ignore[misc]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """As `keras.Model.compute_metrics`; the metrics are created outside of the traced step."""
        if _may_create(y, y_pred, sample_weight):
            keras_internals.build_compile_metrics(self, y, y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)  # type: ignore[misc]

    def test_step(self, data: Any) -> dict[str, Any]:
        """Runs one batch of `evaluate`: the wrapped model's own `test_step` if it has one."""
        if not delegation.overrides(self.model, "test_step"):
            outputs = self.outputs_in_micro_batches(data)
            whole = super().test_step  # type: ignore[misc]
            return whole(data) if outputs is None else self.evaluation_step(data, outputs)
        with delegation.compiled_as(self.model, self) as model:
            return model.test_step(data)

    def predict_step(self, data: Any) -> Any:
        """Runs one batch of `predict`: the wrapped model's own `predict_step` if it has one."""
        own = delegation.overrides(self.model, "predict_step")
        return self.model.predict_step(data) if own else super().predict_step(data)  # type: ignore[misc]


def build_optimizer(model: keras.Model) -> None:
    """Creates the optimizer's variables outside of the step that is traced.

    TensorFlow traces a step in which variables are created twice.
    """
    if not model.optimizer.built and number_of_replicas() == 1:
        with outside_of_the_step():
            model.optimizer.build(model.trainable_variables)


def _may_create(*tensors: Any) -> bool:
    """Returns whether variables, made for tensors like these, can be created outside of the step that is being traced.

    Under a strategy of several replicas Keras has created them.
    """
    leaves = [t for t in keras.tree.flatten(tensors) if t is not None]
    known = all(isinstance(t, tf.Tensor) and t.shape.rank is not None for t in leaves)
    return tf.inside_function() and number_of_replicas() == 1 and known


def number_of_replicas() -> int:
    """Returns how many replicas share a batch, each with a loss of its own."""
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def outside_of_the_step() -> Iterator[None]:
    """Within it nothing belongs to the step that is being traced: variables may be created."""
    with keras_internals.outside_the_graph():
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


def specs_of(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns shapes and dtypes of what a function returns for tensors like these, from a trace in a scratch graph."""
    return keras_internals.specs_of(function, x)


def replica_may_be_empty(batch_size: Any) -> bool:
    """Returns whether a last, small batch may leave a replica without examples."""
    return number_of_replicas() > 1 and not isinstance(batch_size, int)
