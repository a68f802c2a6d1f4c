"""Snapshots of a model's variables as they were some steps ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.conadv.backend import snapshots


class StaleWeights(keras.layers.Layer):
    """Snapshots of the variables before each of the last `staleness` updates, and the number of the present step.

    Before the update of step t, `lag(k)` gives theta_{t-k}; where that would be before the first step, theta_0.

        push()     before the update of step t:  snapshot k <- snapshot k-1, ..., snapshot 1 <- theta_t;  t <- t + 1
        lag(k)     theta_{t-k},  lag(0) the present weights
        reset()    every snapshot <- the present weights

    Snapshots are non-trainable weights: mirrored under a distribution strategy, and saved in every checkpoint. The
    step is saved too, but is none of the weights: a callback that restores earlier weights (EarlyStopping) does not set
    it back, so that no step draws the random numbers of another one again.

    Args:
        staleness: How many snapshots to keep, tau, 0 or more.
        prefix: First part of the snapshots' paths.
        name: The layer's name.

    Attributes:
        step: Number of the present step, an integer variable (int64, on JAX int32).
    """

    def __init__(self, staleness: int, prefix: str, name: str) -> None:
        super().__init__(name=name, autocast=False)
        self.staleness = staleness
        self._prefix = prefix
        self._originals: list[Any] = []
        self._snapshots: list[list[Any]] = []

    def create(self, variables: Sequence[Any]) -> None:
        """Creates the step, at 0, and the snapshots of these variables."""
        with keras.name_scope(self._prefix, override_parent=""):
            step = keras.Variable(0, trainable=False, dtype="int", aggregation="only_first_replica", name="step")
            created = [
                [self._snapshot_of(variable, lag, number) for number, variable in enumerate(variables)]
                for lag in range(1, self.staleness + 1)
            ]
        # Past Keras's tracking: the step is no weight, the variables are others', the snapshots have attributes.
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "_originals", list(variables))
        object.__setattr__(self, "_snapshots", created)

    def _snapshot_of(self, variable: Any, lag: int, number: int) -> Any:
        snapshot = self.add_weight(
            shape=variable.shape,
            dtype=variable.dtype,
            initializer="zeros",
            trainable=False,
            autocast=False,
            name=f"{variable.path.replace('/', '_')}_{lag}_ago",
        )
        # tf.train.Checkpoint finds attributes alone, and nothing in lists.
        setattr(self, f"snapshot_{number}_{lag}_ago", snapshot)
        return snapshot

    def reset(self) -> None:
        """Makes the present weights those of all earlier steps, as they are before the first one."""
        for of_one_age in self._snapshots:
            for snapshot, variable in zip(of_one_age, self._originals, strict=True):
                snapshots.copy(snapshot, variable)

    def lag(self, steps: int) -> list[tuple[Any, Any]]:
        """Returns the weights of `steps` steps ago, as pairs of variable and value.

        Args:
            steps: 0 to `staleness`. 0 are the present weights, for which no pair is needed.
        """
        if steps == 0:
            return []
        of_that_age = self._snapshots[steps - 1]
        return [(v, snapshots.read(old)) for v, old in zip(self._originals, of_that_age, strict=True)]

    def push(self) -> None:
        """Makes the present weights those of one step ago and counts the step; to be called before the update."""
        newer = [self._originals, *self._snapshots[:-1]] if self._snapshots else []
        # The oldest first: each is overwritten once it has been read.
        ages = reversed(list(zip(self._snapshots, newer, strict=True)))
        snapshots.push([pair for age in ages for pair in zip(*age, strict=True)], self.step)

    @property
    def variables(self) -> list[Any]:
        """The snapshots and the step."""
        return [*super().variables, *([self.step] if self.built else [])]

    def save_own_variables(self, store: Any) -> None:
        """Saves the snapshots and the step."""
        super().save_own_variables(store)
        store["step"] = ops.convert_to_numpy(self.step.value)

    def load_own_variables(self, store: Any) -> None:
        """Loads the snapshots and the step."""
        super().load_own_variables({name: store[name] for name in store.keys() if name != "step"})
        self.step.assign(np.asarray(store["step"]))

    # tf.train.Checkpoint calls it.
    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "step": self.step.value} if self.built else children
