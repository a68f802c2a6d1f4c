"""The layer-wise rates over time."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch.callbacks.metrics import updates_taken
from tf_largebatch.run_directory import replacing

_COLUMNS = ("update", "variable", "rate", "gradient_norm")


class LayerwiseRateRecorder(keras.callbacks.Callback):
    """Writes the layer-wise rates and gradient norms of CLARS or LARS to a CSV file.

    One row a recorded update and tensor: `update` (counted from 1), `variable` (its path, in network order),
    `rate` (empty for tensors without layer adaptation, which keep the plain learning rate) and `gradient_norm`
    (in the unit of the mean-loss gradient; empty where the optimizer did not use one).

    A model that has already taken steps continues the file: rows of later updates are dropped.

    Args:
        path: The file.
        every: Record the first update and every update whose number is a multiple of this; `"epoch"` for the
            last of every epoch.

    Raises:
        ValueError: If `every` is neither a positive integer nor `"epoch"`, and when training begins, if the
            optimizer has no layer-wise rates.
    """

    def __init__(self, path: str | os.PathLike[str], every: int | str = "epoch") -> None:
        super().__init__()
        if every != "epoch" and not (isinstance(every, int) and every >= 1):
            raise ValueError(f"`every` must be a positive integer or 'epoch'; received every={every!r}.")
        self.path = pathlib.Path(path)
        self.every = every

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keeps the rows of the updates already taken."""
        optimizer = self._optimizer
        if not hasattr(optimizer, "layerwise_rates"):
            raise ValueError(
                f"`optimizer` must have layer-wise rates, as CLARS and LARS do; received {optimizer.name}."
            )
        self._update = updates_taken(self.model)
        kept = [row for row in read_layerwise_rates(self.path) if row[0] <= self._update]
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *kept])

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records, if it is this update's turn."""
        self._update += 1
        if self.every != "epoch" and (self._update == 1 or self._update % self.every == 0):
            self._record()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records, if epochs are wanted."""
        if self.every == "epoch":
            self._record()

    @property
    def _optimizer(self) -> Any:
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    def _record(self) -> None:
        try:
            rates, norms = self._optimizer.layerwise_rates(), self._optimizer.gradient_norms()
        except RuntimeError:  # No step yet: a loss scale that was too large skipped the first.
            return
        update, adapted = updates_taken(self.model), set(self._optimizer.adapted_tensors())
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerows(
                (update, name, repr(rate) if name in adapted else "", repr(norms[name]) if name in norms else "")
                for name, rate in rates.items()
            )


def read_layerwise_rates(path: str | os.PathLike[str]) -> list[tuple[int, str, float | str, float | str]]:
    """The rows of a `layerwise_rates.csv`; none if it is missing. A row cut short at its end is left out."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()[1:]
    return [
        (int(update), name, float(rate) if rate else "", float(norm) if norm else "")
        for update, name, rate, norm in csv.reader(whole)
    ]
