"""What a training step takes by its number of examples: what the compiled steps say."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tf_largebatch.backend.jax.sized_step import free_memory, memory_of
from tf_largebatch.core.micro_batch_sizes import largest_that_fits
from tf_largebatch.training.memory_limit import BatchMemory, affine, power_of_two_below


def batch_memory(model: Any, data: Any, most: int) -> BatchMemory:
    """Compiles the training step for some sizes of batches and runs none.

    Args:
        model: A `LargeBatchModel` that has made a step.
        data: A batch of any size: inputs and targets.
        most: The largest batch to ask about.
    """
    groups = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    state = tuple([v.value for v in group] for group in (*groups, model.metrics_variables))
    need: dict[int, float] = {}

    def bytes_of(size: int) -> float:
        batch = jax.tree.map(lambda t: jax.ShapeDtypeStruct((size, *np.shape(t)[1:]), t.dtype), data)
        step = jax.jit(lambda state, batch: model.train_step(state, batch), donate_argnums=0)
        need[size] = memory_of(step, (state, batch))
        return need[size]

    limit = free_memory(state)
    largest = largest_that_fits(bytes_of, power_of_two_below(most), limit)
    if len(need) < 2:
        bytes_of(max(next(iter(need)) // 4, 1))
    return BatchMemory(largest, *affine(need), limit, "the compiled step's memory")
