"""The largest micro-batch that fits: smaller ones after out-of-memory errors, with nothing lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.backend.tensorflow.micro_batches import batch_size_of
from tf_largebatch.check import require
from tf_largebatch.keras_internals import global_random_state
from tf_largebatch.training.automatic_size import AutomaticSize, does_not_fit, smaller_size


class SizedTrainFunction:
    """What `fit` calls for each execution of one or several steps, where the size of micro-batches is chosen.

    TensorFlow cannot tell what a step will take. So the first step on batches of a new shape is tried, and repeated
    with the same batch and smaller micro-batches as long as it runs out of memory, each time from the variables that
    were there before.

    Args:
        model: The model with `micro_batch_size="auto"`.
        make: Makes the function of a batch that does one step, traced anew.

    Raises:
        ValueError: If several processes train together.
    """

    def __init__(self, model: Any, make: Callable[[], Callable[[Any], Any]]) -> None:
        check_processes(model)
        self._model, self._make = model, make
        self._step: Callable[[Any], Any] | None = None
        self._known: set[Any] = set()

    def __call__(self, iterator: Iterator[Any]) -> Any:
        """Does `steps_per_execution` steps, fewer if the data end; StopIteration if there are no more data."""
        logs = None
        for number in range(self._model.steps_per_execution):
            try:
                data = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                if number == 0:
                    raise StopIteration from None
                break
            logs = self._on(data)
        return logs

    def _on(self, data: Any) -> Any:
        leaves = keras.tree.flatten(data)
        local = self._model.distribute_strategy.experimental_local_results
        shapes = tuple(str(part.shape) for leaf in leaves for part in local(leaf) if hasattr(part, "shape"))
        if self._step is None or shapes not in self._known:
            self._step, logs = first_that_fits(self._model, data, self._make, data, known=self._step)
            self._known.add(shapes)
            return logs
        return self._step(data)


def first_that_fits(
    model: Any,
    data: Any,
    make: Callable[[], Callable[..., Any]],
    *arguments: Any,
    known: Any = None,
    undo: bool = False,
) -> tuple[Callable[..., Any], Any]:
    """Runs a step with ever smaller micro-batches until it does not run out of memory.

    Args:
        model: The model with `micro_batch_size="auto"`.
        data: The batch, of all replicas.
        make: Makes the step, traced anew with the size that is to be tried.
        *arguments: What the step is called with.
        known: A step that is traced already with the present size; None for none.
        undo: Whether the variables are restored after a step that ran through, too.

    Returns:
        The step that ran through, and its result.

    Raises:
        OutOfMemory: If it does not even run with one example at a time.
    """
    automatic: AutomaticSize = model.automatic_size
    batch_size = max(int(batch_size_of(part)) for part in _first_parts(model, data))
    _create_variables(model, data)
    before = _Copy(model)
    automatic.use(automatic.size, batch_size)
    while True:
        step = make() if known is None else known
        try:
            result = step(*arguments)
        except tf.errors.ResourceExhaustedError as error:
            before.restore()
            tried = automatic.size or batch_size
            size = smaller_size(batch_size, tried, equal=bool(model.jit_compile))
            if size is None:
                raise does_not_fit(model.micro_batch_size, tried, None) from error
            automatic.use(size, batch_size)
            known = None
            continue
        if undo:
            before.restore()
        automatic.adopt(batch_size)
        return step, result


def check_processes(model: Any) -> None:
    """Raises ValueError if several processes train together: one that runs out of memory ends their communication."""
    resolver = model.distribute_strategy.cluster_resolver
    workers = 1 if resolver is None else sum(map(len, resolver.cluster_spec().as_dict().values()))
    require(
        workers <= 1,
        "micro_batch_size",
        model.micro_batch_size,
        f"a number or None where {workers} processes train together",
        "try 'auto' in one process with a worker's share of the batch, and pass what it prints",
    )


@contextlib.contextmanager
def explaining_out_of_memory(model: Any, batch_size: int | None = None) -> Iterator[None]:
    """Within it a training step that runs out of memory raises an `OutOfMemory` that says which size to try.

    Args:
        model: The model that is trained.
        batch_size: Number of examples of a batch, on a device, where the model does not know it. None leaves the errors
            of models that are no wrappers of this package as they are.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if not hasattr(model, "traced_batch_size"):  # one of Keras's own
            if batch_size is None:
                raise
            raise does_not_fit(None, batch_size, smaller_size(batch_size, batch_size)) from error
        batch_size = model.traced_batch_size() or batch_size
        at_a_time = model.examples_at_a_time or batch_size
        estimate = None
        if at_a_time is not None:
            estimate = smaller_size(batch_size or at_a_time, at_a_time, equal=bool(model.jit_compile))
        raise does_not_fit(model.micro_batch_size, at_a_time, estimate) from error


class _Copy:
    """The values of all variables that a step assigns, in the memory of the host, on each replica."""

    def __init__(self, model: Any) -> None:
        self._model = model
        variables = [*model.variables, *model.metrics_variables, *model._untracked_variables(), global_random_state()]
        variables += [] if model.optimizer is None else model.optimizer.variables
        self._kept = {id(v): v for v in variables if v is not None}
        self._values = {key: [part.numpy() for part in self._parts(v)] for key, v in self._kept.items()}

    def restore(self) -> None:
        """Gives the variables their values back; metrics that the step has just created begin anew."""
        for key, variable in self._kept.items():
            for part, value in zip(self._parts(variable), self._values[key], strict=True):
                part.assign(value)
        for metric in self._model.metrics:
            if any(id(v) not in self._kept for v in metric.variables):
                metric.reset_state()

    def _parts(self, variable: Any) -> tuple[Any, ...]:
        return self._model.distribute_strategy.experimental_local_results(variable.value)


def _create_variables(model: Any, data: Any) -> None:
    """Creates what a first step would create, so that it can be restored."""
    strategy = model.distribute_strategy
    first = keras.tree.map_structure(lambda t: strategy.experimental_local_results(t)[0], data)
    with strategy.scope():
        model._build_wrapped(keras.utils.unpack_x_y_sample_weight(first)[0])
        model._build_untracked()
        if model.optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def _first_parts(model: Any, data: Any) -> list[Any]:
    """Returns the first tensor of each replica's share of a batch."""
    leaf = next(t for t in keras.tree.flatten(data) if t is not None and not isinstance(t, tf.experimental.Optional))
    return list(model.distribute_strategy.experimental_local_results(leaf))
