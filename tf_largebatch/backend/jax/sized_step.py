"""The largest micro-batch that fits, from what the compiled step says of its memory; and errors where it does not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

from tf_largebatch.backend.jax.distribution import devices_of_a_batch
from tf_largebatch.backend.jax.micro_batches import batch_size_of
from tf_largebatch.core.micro_batch_sizes import largest_that_fits
from tf_largebatch.training import memory_limit
from tf_largebatch.training.automatic_size import AutomaticSize, does_not_fit, smaller_size

# Of what a device or the system has free; the rest is for fragments, and for what other processes allocate meanwhile.
_USABLE = 0.9


class SizedSteps:
    """Chooses the micro-batch size of compiled steps before they run, for each new shape of batches.

    Args:
        model: The model with `micro_batch_size="auto"`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: list[tuple[Any, ...]] = []

    def choose(self, data: Any, program: Callable[[int | None], Any], arguments: Sequence[Any]) -> int | None:
        """Chooses a size if batches of this shape are new, and returns it.

        Args:
            data: The batch.
            program: Returns the jitted step of a size. The one of the size that is chosen is compiled then.
            arguments: What the step is called with.

        Raises:
            OutOfMemory: If the step does not fit with any size.
        """
        automatic: AutomaticSize = self._model.automatic_size
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(data))
        if any(_covers(known, shapes) for known in self._known):
            return automatic.size
        batch_size, limit, need = batch_size_of(data), free_memory(arguments), {}

        def bytes_of(size: int) -> float:
            automatic.use(size, batch_size)
            need[size] = memory_of(program(automatic.size), arguments)
            return need[size]

        size = largest_that_fits(bytes_of, batch_size, limit, devices_of_a_batch(), first=automatic.size)
        available = memory_limit.readable(limit)
        if size is None:
            automatic.size = None
            least = memory_limit.readable(min(need.values()))
            raise does_not_fit(self._model.micro_batch_size, min(need), None, f"it takes {least} of {available}")
        automatic.use(size, batch_size)
        self._known.append(shapes)
        detail = f"the step takes {memory_limit.readable(need[size])} of {available}"
        automatic.adopt(batch_size, detail, announce=jax.process_index() == 0)
        return automatic.size


class SizedTrainFunction:
    """What `fit` calls for each execution of one or several steps, where the size of micro-batches is chosen.

    Args:
        model: The model, whose `train_step` is compiled.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._sized = SizedSteps(model)
        self._programs: dict[int | None, Any] = {}

    def __call__(self, state: Any, iterator: Iterator[Any]) -> tuple[dict[str, Any], Any]:
        """Does `steps_per_execution` steps, fewer if the data end; StopIteration if there are no more data."""
        logs, state = self._step(state, next(iterator))
        for _ in range(self._model.steps_per_execution - 1):
            data = next(iterator, None)
            if data is None:
                break
            logs, state = self._step(state, data)
        return logs, state

    def _step(self, state: Any, data: Any) -> Any:
        size = self._sized.choose(data, lambda size: self._program(size, state), (state, data))
        if self._model.run_eagerly or not self._model.jit_compile:
            return self._model.train_step(state, data)
        return self._program(size, state)(state, data)

    def _program(self, size: int | None, state: Any) -> Any:
        if size not in self._programs:

            def step(state: Any, data: Any) -> Any:
                return self._model.train_step(state, data)

            shardings = None
            if keras.distribution.distribution() is not None:
                shardings = None, jax.tree.map(lambda value: value.sharding, state)
            self._programs[size] = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        return self._programs[size]


def _covers(known: tuple[Any, ...], shapes: tuple[Any, ...]) -> bool:
    """Tells whether arrays of these shapes take no more memory than those known."""
    return len(known) == len(shapes) and all(
        len(a) == len(b) and all(i >= j for i, j in zip(a, b, strict=True)) for a, b in zip(known, shapes, strict=True)
    )


def memory_of(jitted: Any, arguments: Sequence[Any]) -> float:
    """Returns the bytes that a jitted function takes on each device: arguments, results and what it works with.

    It compiles the function and runs nothing. inf where compiling itself runs out of memory, which tries kernels.
    """
    try:
        found = jitted.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return math.inf
    if found is None:  # a platform that says nothing
        return 0.0
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return float(found.argument_size_in_bytes + results + found.temp_size_in_bytes + found.generated_code_size_in_bytes)


def free_memory(arguments: Any = ()) -> float:
    """Returns the bytes that a step may take on each device, with its arguments: the least of all that there are.

    That is TF_LARGEBATCH_MEMORY_LIMIT where it is set; else nine tenths of what is free on the device, or, on a CPU, in
    the system.

    Args:
        arguments: Arrays that the step gets: what they take is not free, and is the step's all the same.
    """
    given = memory_limit.given_limit()
    arrays = [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, jax.Array)]
    devices = {device for array in arrays for device in array.sharding.addressable_devices} or {jax.local_devices()[0]}

    def of_arguments(device: Any) -> int:
        shards = (shard for array in arrays for shard in array.addressable_shards)
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    def free(device: Any) -> float:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            return stats["bytes_limit"] - stats.get("bytes_in_use", 0) + of_arguments(device)
        return memory_limit.available_of_system() / len(devices) + of_arguments(device)

    least = _USABLE * min(map(free, devices)) if given is None else given
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        least = float(np.min(multihost_utils.process_allgather(np.float32(least))))
    return float(least)


@contextlib.contextmanager
def explaining_out_of_memory(model: Any, batch_size: int | None = None) -> Iterator[None]:
    """Within it a training step that runs out of memory raises an `OutOfMemory` that says which size would fit.

    Args:
        model: The model that is trained.
        batch_size: Number of examples of a batch, on a device, where the model does not know it. None leaves the errors
            of models that are no wrappers of this package as they are.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        own = not hasattr(model, "traced_batch_size")  # one of Keras's
        if not _is_out_of_memory(error) or (own and batch_size is None):
            raise
        if own:
            assert batch_size is not None  # see above
            raise does_not_fit(None, batch_size, smaller_size(batch_size, batch_size)) from error
        argument, batch_size = model.micro_batch_size, model.traced_batch_size() or batch_size
        at_a_time = model.examples_at_a_time or batch_size
        estimate = _estimate(model)
        if at_a_time is not None and (estimate is None or estimate >= at_a_time):
            estimate = smaller_size(batch_size or at_a_time, at_a_time)
        raise does_not_fit(argument, at_a_time, estimate) from error


def _estimate(model: Any) -> int | None:
    """Returns the largest micro-batch that fits by the compiled step; None where that cannot be told."""
    traced = model.traced_step
    if traced is None or keras.distribution.distribution() is not None:
        return None
    step, specs, batch_size = traced

    def bytes_of(size: int) -> float:
        with model.splitting(size):
            return memory_of(jax.jit(lambda *arguments: step(*arguments), donate_argnums=0), specs)

    try:
        return largest_that_fits(bytes_of, batch_size, free_memory(), tries=3)
    except Exception:  # the estimate is a courtesy: the error that it belongs to must be seen
        return None


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
