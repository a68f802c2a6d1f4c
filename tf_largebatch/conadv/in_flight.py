"""The batch of ConAdvModel between two steps."""

from __future__ import annotations

from typing import Any


class InFlight:
    """The batch that was drawn and not yet trained on, its adversarial images, and how many batches are still to come.

    It outlives the train function, which Keras makes anew when a model is compiled.

    Attributes:
        aside: Whether the train function is called for a batch of its own, by `train_on_batch`.
    """

    def __init__(self) -> None:
        self.aside = False
        self.clear()

    def clear(self, batches_left: int | None = None) -> None:
        """Drops the batch, before and after a `fit` over `batches_left` batches, None if that is unknown."""
        self.batches_left = batches_left
        self.hold(None, None, None)

    def hold(self, iterator: Any, batch: Any, adversarial: Any) -> None:
        """Keeps a batch, its adversarial images, and the iterator it was drawn from."""
        self.iterator, self.batch, self.adversarial = iterator, batch, adversarial
