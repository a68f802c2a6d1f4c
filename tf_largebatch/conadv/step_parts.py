"""What the train function of ConAdvModel calls: the parts of a step, on either backend."""

from __future__ import annotations

from typing import Any, Protocol


class Steps(Protocol):
    """What the train function needs of the model."""

    run_eagerly: bool
    jit_compile: bool
    steps_per_execution: int
    micro_batch_size: int | str | None

    def train_on_pair(self, data: Any, adversarial: Any) -> dict[str, Any]:
        """Trains on a batch and its adversarial images."""

    def attack_present(self, data: Any) -> Any:
        """Returns the adversarial images of the batch of the present step."""

    def attack_next(self, data: Any) -> Any:
        """Returns the adversarial images of the batch of the next step; to be called before the update."""
