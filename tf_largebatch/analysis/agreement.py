"""How far the gradients of the examples agree, for each tensor over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tf_largebatch import check
from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues


def variance_factor(agreement: float) -> float:
    """Returns 1 / M^2, about the ratio of the mean square of the examples' gradients to that of the batch's.

    It is 1 where all examples agree and the batch size B where their gradients are independent noise. The norms'
    spread over the examples is left out, so that it is a lower bound.

    Args:
        agreement: M, above 0.

    Raises:
        ValueError: If M is not above 0.
    """
    return 1.0 / check.number("agreement", agreement, lambda m: m > 0, "a number above 0") ** 2


class AgreementRecorder(LayerwiseCallback):
    """Records the gradient agreement of every tensor while CLARS trains.

        M_k = ||grad_k f|| / s_k,     s_k = (1/B) sum_i ||grad_k f_i||

    From 0, where the examples' gradients cancel, to 1, where they are parallel. Without weight decay it is the ratio of
    CLARS's rate to LARS's. Weight decay is in neither norm.

    Args:
        every: Updates between two records, or "epoch"; see `LayerwiseCallback`.

    Attributes:
        updates: Numbers of the recorded updates.
        agreements: For each tensor with a measured norm its values of M, one for each record.
    """

    def __init__(self, every: int | str = "epoch") -> None:
        super().__init__(every, batch_gradient_norms=True)
        self.updates: list[int] = []
        self.agreements: dict[str, list[float]] = {}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks that the optimizer is one whose norms are those of the examples."""
        super().on_train_begin(logs)
        self.updates, self.agreements = [], {}

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Adds the agreements of an update."""
        found = {label: v.gradient_agreement for label, v in values.items() if v.gradient_agreement is not None}
        self.updates.append(update)
        for label, value in found.items():
            self.agreements.setdefault(label, []).append(value)
