"""The batch of ConAdvModel between two steps, and what a train function needs of the model."""

from __future__ import annotations

from typing import Any, Protocol


class Steps(Protocol):
    """What the train function needs of the model."""

    distribute_strategy: Any
    run_eagerly: bool
    jit_compile: bool
    steps_per_execution: int

    def get_ready(self, data: Any) -> None:
        """Does what must be done outside of the compiled step, given a batch."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch, then trains on it."""

    def train_on_pair(self, data: Any, adversarial: Any) -> dict[str, Any]:
        """Trains on a batch and its adversarial images."""

    def attack_present(self, data: Any) -> Any:
        """Returns the adversarial images of the batch of the present step."""

    def attack_next(self, data: Any) -> Any:
        """Returns the adversarial images of the batch of the next step; to be called before the update."""

    def step_logs(self) -> dict[str, Any]:
        """Returns the logs after a step."""


class InFlight:
    """The batch that was drawn and not yet trained on, its adversarial images, and how many batches are still to come.

    It outlives the train function, which Keras makes anew when a model is compiled.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self, batches_left: int | None = None) -> None:
        """Drops the batch, before and after a `fit` over `batches_left` batches, None if that is unknown."""
        self.batches_left = batches_left
        self.hold(None, None, None)

    def hold(self, iterator: Any, batch: Any, adversarial: Any) -> None:
        """Keeps a batch, its adversarial images, and the iterator it was drawn from."""
        self.iterator, self.batch, self.adversarial = iterator, batch, adversarial
