"""Gradients and norms of several batches, added up until their update is due."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.training.differentiate import dense
from tf_largebatch.training.step import Pass


class Accumulation:
    """Collects the gradients and norms of a group of k batches, which make one update.

        gradient = sum_j B_j gradient_j / sum_j B_j        j = 1..k, B_j examples in batch j; the norms alike

    With losses that are means over the examples this is the gradient of the concatenated batch, and CLARS's s_k is the
    mean over all of its examples. k is the number of batches whose examples come nearest to a target between two
    bounds. The target is a variable of the step: to change it compiles nothing. A group that an epoch leaves unfinished
    goes on in the next.

    It takes one more copy of the trained weights in memory. It is not part of the model: it is not among its weights
    and not saved with it.

    Args:
        target: Examples of an update; 0 for those of one batch.
        minimum: The fewest examples of an update.
        maximum: The most examples of an update, unless one batch has more, or no multiple lies between the bounds.

    Attributes:
        trained: The K variables whose gradients are added up; empty until `build`.
        variables: What a checkpoint must hold for the group to go on; empty until `build`.
    """

    def __init__(self, target: float = 0.0, minimum: float = 0.0, maximum: float = np.inf) -> None:
        self._aim = target, minimum, maximum
        self.trained: list[keras.Variable] = []
        self.variables: list[keras.Variable] = []

    def build(self, trained: Sequence[keras.Variable]) -> None:
        """Makes the variables, once."""
        if self.variables:
            return
        self.trained = list(trained)

        def variable(value: Any, dtype: Any, name: str) -> keras.Variable:
            return keras.Variable(value, trainable=False, dtype=dtype, autocast=False, name=name)

        self._aims = variable(np.array(self._aim), "float32", "examples_of_an_update")  # target, minimum, maximum
        # Of the group so far, of the last batch, of the last update.
        self._counts = variable(np.zeros(3), "float32", "accumulated_examples")
        self._packed = variable(np.zeros((2, len(self.trained))), "float32", "accumulated_norms")
        self._gradients = [variable(np.zeros(v.shape), v.dtype, "accumulated_gradient") for v in self.trained]
        self.variables = [self._aims, self._counts, self._packed, *self._gradients]

    def add(self, result: Pass, batch_size: Any) -> None:
        """Adds a batch to the group."""
        examples = ops.cast(batch_size, "float32")
        self._counts.assign(ops.stack([self._counts[0] + examples, examples, self._counts[2]]))
        none = ops.zeros((len(self.trained),), "float32")
        norms = none if result.norms is None else result.norms.values
        mean_squares = none if result.mean_squares is None else result.mean_squares
        self._packed.assign(self._packed + examples * ops.stack([norms, mean_squares]))
        for total, gradient in zip(self._gradients, result.gradients, strict=True):
            if gradient is not None:
                total.assign(total + ops.cast(examples, total.dtype) * ops.cast(dense(gradient), total.dtype))

    def mean(self, result: Pass) -> Pass:
        """Returns the mean over the batches of the group.

        Args:
            result: That of the last batch, which tells what there is.
        """
        share = 1 / self.examples
        means = share * self._packed
        gradients = [
            None if gradient is None else ops.cast(share, total.dtype) * ops.convert_to_tensor(total)
            for total, gradient in zip(self._gradients, result.gradients, strict=True)
        ]
        return dataclasses.replace(
            result,
            gradients=gradients,
            norms=None if result.norms is None else GradientNorms(means[0], result.norms.known),
            mean_squares=None if result.mean_squares is None else means[1],
        )

    @property
    def examples(self) -> Any:
        """Number of examples of the group so far."""
        return self._counts[0]

    def is_complete(self) -> Any:
        """Tells whether the group has as many batches as its update takes."""
        examples, batch, _ = ops.unstack(self._counts.value, 3)
        target, minimum, maximum = ops.unstack(self._aims.value, 3)
        nearest = ops.logical_or(examples + batch / 2 > target, examples + batch > maximum)
        return ops.logical_and(examples >= minimum, nearest)

    def begin_group(self) -> None:
        """Empties the group, after its update."""
        examples, batch, _ = ops.unstack(self._counts.value, 3)
        self._counts.assign(ops.stack([ops.zeros_like(examples), batch, examples]))
        self._packed.assign(ops.zeros_like(self._packed.value))
        for total in self._gradients:
            total.assign(ops.zeros_like(total.value))

    @property
    def last_batch_size(self) -> int:
        """Number of examples of the last update, outside of a step; 0 before the first one."""
        return int(ops.convert_to_numpy(self._counts.value)[2]) if self.variables else 0

    @property
    def target(self) -> float:
        """How many examples an update aims at, outside of a step."""
        return float(ops.convert_to_numpy(self._aims.value)[0]) if self.variables else self._aim[0]

    @target.setter
    def target(self, examples: float) -> None:
        _, minimum, maximum = ops.convert_to_numpy(self._aims.value) if self.variables else self._aim
        self._aim = float(np.clip(examples, minimum, maximum)), float(minimum), float(maximum)
        if self.variables:
            self._aims.assign(np.array(self._aim, "float32"))
