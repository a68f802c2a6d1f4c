"""The layer-wise rates and norms over time, as a CSV file."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues
from tf_largebatch.files import local_path, naming_damage, replacing

_VALUES = ("rate", "gradient_norm", "weight_norm", "batch_gradient_norm", "gradient_agreement")
_COLUMNS = ("update", "variable", *_VALUES)


class LayerwiseRateRecorder(LayerwiseCallback):
    """Writes the layer-wise rates of CLARS or LARS, and the norms behind them, to a CSV file.

    It writes one row for each recorded update and tensor, tensors in the network's order. The columns are `update`
    (counted from 1), `variable` (its path, and `"path#2"` for the second of that path), and the attributes of
    `LayerwiseValues`, empty where they are None: `rate` (tensors without layer adaptation, which keep the plain
    learning rate, have none), `gradient_norm`, `weight_norm`, `batch_gradient_norm`, `gradient_agreement`.

    A model that has already taken steps continues the file: rows of later updates are dropped.

    Args:
        path: The CSV file.
        every: Record the first update and every update whose number is a multiple of this; `"epoch"` for the
            last of every epoch.
        batch_gradient_norms: Whether the optimizer keeps the norms of the batch's gradients, from which
            `gradient_agreement` follows: a pass over the gradients in every update.

    Raises:
        ValueError: If `every` is neither a positive integer nor `"epoch"`, and when training begins, if the
            optimizer has no layer-wise rates.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int | str = "epoch", batch_gradient_norms: bool = False
    ) -> None:
        super().__init__(every, batch_gradient_norms)
        self.path = local_path(path)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keeps the rows of the updates that were already taken."""
        super().on_train_begin(logs)
        with naming_damage(self.path):
            kept = [row for row in _read(self.path) if int(row["update"]) <= self._update]
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Appends the update's rows."""
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerows(
                (update, path, *(_text(getattr(value, name)) for name in _VALUES)) for path, value in values.items()
            )


def read_layerwise_values(path: str | os.PathLike[str]) -> list[tuple[int, str, dict[str, float]]]:
    """Returns the rows of a recorder's file as (update, variable, {column: number}), without empty columns.

    A missing file has no rows. A row that was cut short at the end of the file is left out.
    """
    with naming_damage(path):
        return [
            (int(row["update"]), row["variable"], {name: float(row[name]) for name in _VALUES if row.get(name)})
            for row in _read(local_path(path))
        ]


def read_layerwise_rates(path: str | os.PathLike[str]) -> list[tuple[int, str, float | str, float | str]]:
    """Returns the rows as (update, variable, rate, gradient norm), with `""` for what is not there."""
    return [
        (update, name, values.get("rate", ""), values.get("gradient_norm", ""))
        for update, name, values in read_layerwise_values(path)
    ]


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = path.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)
