"""What ConAdvModel does in Keras's trainer on JAX."""

from __future__ import annotations

from typing import Any


class ConAdvTrainer:
    """Mixed into ConAdvModel before LargeBatchModel.

    Keras hands the state to the first step once it has built everything, and takes the variables' values away until the
    epoch ends. So what a batch is to be checked for, and what is to be made current, is done when Keras builds.
    """

    get_ready: Any
    _checked: bool
    _in_training: bool

    def get_ready_in_step(self, data: Any) -> None:
        """Raises ValueError in a step for which nothing is ready."""
        del data
        if not self._checked:
            raise ValueError(
                "A loop of your own must call get_ready(batch) before it reads the model's variables and calls "
                "train_step: batches are checked and snapshots of the weights are taken there."
            )

    def end_step(self) -> None:
        """Brings the variables up to date in the middle of an epoch, while a callback runs."""
        self.jax_state_sync()  # type: ignore[attr-defined]

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Keras calls it before a step is traced, with the variables' values in place."""
        if self._in_training:
            if data_batch is None:
                for _, _, batches in iterator:
                    data_batch = batches[0] if isinstance(batches, list | tuple) else next(batches)
                    break
            self.get_ready(data_batch)
        super()._symbolic_build(iterator, data_batch)  # type: ignore[misc]
