"""What ConAdvModel does in Keras's trainer on TensorFlow."""

from __future__ import annotations

from typing import Any


class ConAdvTrainer:
    """Mixed into ConAdvModel before LargeBatchModel."""

    get_ready: Any

    def get_ready_in_step(self, data: Any) -> None:
        """Gets ready for a batch while its step is traced: what must be done outside is done outside."""
        self.get_ready(data)

    def end_step(self) -> None:
        """Does nothing: on TensorFlow a step leaves its results in the variables."""
