"""The layer-wise update in Keras 3 on TensorFlow: all variables of a replica in one update of `tf.distribute`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.backend.tensorflow.replica_local import for_one_all_reduce
from tf_largebatch.backend.tensorflow.xla_update import CompiledPerDevice
from tf_largebatch.optimizers.update import LayerwiseUpdate


class ReplicaUpdate(LayerwiseUpdate):
    """Mixed into a Keras optimizer beside `LayerwiseUpdate`: overrides what Keras does for TensorFlow alone.

    Keras sums the gradients over the replicas and then updates one variable at a time on all replicas. Here one update
    context holds all variables: what an update returns comes back wrapped differently by each strategy, so rates have
    to be packed where they are made, and XLA can compile all updates into one program.
    """

    # What the optimizer that this is mixed into has.
    jit_compile: bool
    gradient_accumulation_steps: Any
    _packed_rates: Any
    _keeps_batch_norms: bool
    _separate_norms: Any
    _update_and_record: Any

    def _init_replica_update(self) -> None:
        self._compiled = CompiledPerDevice()

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        try:
            super()._backend_apply_gradients(grads, trainable_variables)  # type: ignore[misc]
        except RuntimeError as error:
            if not self.gradient_accumulation_steps or "merge_call" not in str(error):
                raise
            raise RuntimeError(
                "Keras cannot accumulate gradients under this tf.distribute strategy inside a tf.function, with "
                "any optimizer: split the batch with tf_largebatch.LargeBatchModel(micro_batch_size=...) instead "
                f"of gradient_accumulation_steps={self.gradient_accumulation_steps}."
            ) from error

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        super()._backend_update_step(for_one_all_reduce(grads), trainable_variables, learning_rate)  # type: ignore[misc]

    def _distributed_tf_update_step(
        self, distribution: Any, grads_and_vars: Sequence[tuple[Any, Any]], learning_rate: Any
    ) -> None:
        pairs, norms = self._separate_norms(list(grads_and_vars))
        variables = [variable for _, variable in pairs]

        def update_all(learning_rate: Any, norms: Any, gradients: list[Any]) -> None:
            self._update_and_record(gradients, variables, learning_rate, norms)

        def update_replica(local_rates: Any, learning_rate: Any, norms: Any, gradients: list[Any]) -> None:
            if self.jit_compile:
                key = (self._keeps_batch_norms, *(self._get_variable_index(variable) for variable in variables))
                tensors = tf.convert_to_tensor(learning_rate), norms, gradients
                self._compiled(update_all, local_rates.device, key, *tensors)
            else:
                update_all(learning_rate, norms, gradients)

        gradients = [gradient for gradient, _ in pairs]
        distribution.extended.update(
            self._packed_rates.value, update_replica, args=(learning_rate, norms, gradients), group=False
        )
