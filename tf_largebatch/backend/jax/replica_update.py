"""The layer-wise update in Keras 3 on JAX: all variables in one update of Keras's optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tf_largebatch.optimizers.update import LayerwiseUpdate


class ReplicaUpdate(LayerwiseUpdate):
    """Mixed into a Keras optimizer beside `LayerwiseUpdate`: overrides what Keras does for JAX alone.

    Keras updates one variable after the other; here one call updates all, so that their rates and norms become one
    vector each. There are no replicas: gradients and norms are those of the global batch. `jit_compile` changes
    nothing, since Keras compiles the whole step.
    """

    # What the optimizer that this is mixed into has.
    _separate_norms: Any
    _update_and_record: Any

    def _init_replica_update(self) -> None:
        """Keeps no compiled programs: the step that the update is part of is compiled as a whole."""

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        pairs, norms = self._separate_norms(list(zip(grads, trainable_variables, strict=True)))
        gradients, variables = [gradient for gradient, _ in pairs], [variable for _, variable in pairs]
        self._update_and_record(gradients, variables, learning_rate, norms)
