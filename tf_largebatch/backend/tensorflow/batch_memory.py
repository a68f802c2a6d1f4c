"""What a training step takes by its number of examples: measured while steps run."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tf_largebatch.keras_internals import memory_of_gpu
from tf_largebatch.training import memory_limit
from tf_largebatch.training.memory_limit import BatchMemory, affine, power_of_two_below

_GROWTH = 4  # between the two batches
_USABLE = 0.9  # as in backend/jax/sized_step.py


def batch_memory(model: Any, data: Any, most: int) -> BatchMemory:
    """Makes updates with two batches, and lays a straight line through the memory that they take.

    On a GPU that is the peak of what TensorFlow has allocated; on a CPU the peak of the process's memory.

    Args:
        model: A `LargeBatchModel` that has made a step; its weights change.
        data: A batch: inputs and targets. Its size is the first of the two.
        most: The largest batch to ask about.
    """
    gpus = tf.config.list_logical_devices("GPU")
    need: dict[int, float] = {}
    for factor in (1, _GROWTH):
        batch = [np.concatenate([np.asarray(t)] * factor) for t in data]
        peak = _peak_of_gpu if gpus else _peak_of_process
        need[len(batch[0])] = peak(lambda batch=batch: model.train_on_batch(*batch), gpus[0].name if gpus else "")
    fixed, of_example = affine(need)
    given = memory_limit.given_limit()
    if given is not None:
        limit = float(given)
    elif gpus:
        limit = _USABLE * memory_of_gpu(gpus[0].name)
    else:
        limit = _USABLE * (memory_limit.available_of_system() + _resident("VmRSS"))
    fits = (limit - fixed) / of_example if of_example else float(most)
    largest = None if fits < 1 else power_of_two_below(min(fits, most))
    return BatchMemory(largest, fixed, of_example, limit, "estimated from the memory of two steps")


def _peak_of_gpu(run: Any, device: str) -> float:
    name = device.split("device:")[-1]
    run()  # compiles, and lets kernels be chosen
    tf.config.experimental.reset_memory_stats(name)
    run()
    return float(tf.config.experimental.get_memory_info(name)["peak"])


def _peak_of_process(run: Any, device: str) -> float:
    del device
    run()
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    except OSError:
        pass
    run()
    return _resident("VmHWM")


def _resident(entry: str) -> float:
    """Bytes of main memory that this process has: now (VmRSS) or at its peak (VmHWM)."""
    try:
        text = pathlib.Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        import resource

        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(rf"{entry}:\s*(\d+) kB", text)
    return 1024.0 * int(found[1]) if found else 0.0
