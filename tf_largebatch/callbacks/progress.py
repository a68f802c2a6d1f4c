"""Layer-wise rates and norms in Keras's progress bar."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tf_largebatch.callbacks.layerwise_values import LayerwiseCallback, LayerwiseValues
from tf_largebatch.check import message, require

_NAMES = tuple(field.name for field in dataclasses.fields(LayerwiseValues))


class LayerwiseProgress(LayerwiseCallback):
    """Shows layer-wise values of CLARS or LARS in the progress bar of `fit`.

    They are added to the logs, so the progress bar (`verbose=1`), `History` and every callback after this one see them.
    By default each is the median over the tensors with layer adaptation, under the name of the value (`rate`). With
    `tensors`, there is one value for each of these tensors (`rate/dense/kernel`).

    Args:
        show: Which attributes of `LayerwiseValues`: any of `rate`, `weight_norm`, `gradient_norm`,
            `batch_gradient_norm`, `gradient_agreement`. Unknown values are left out.
        tensors: Patterns (`re.search` on the variable's path) of the tensors to show individually.
        every: Read the values at the first update and every update whose number is a multiple of this; `"epoch"` to
            read them at the end of every epoch. Reading costs a copy of a few numbers from the device and a pass over
            the weights; `batch_gradient_norm` and `gradient_agreement` cost a pass over the gradients in every update.

    Raises:
        ValueError: If `show` names no such value or `every` is neither a positive integer nor `"epoch"`; when
            training begins, if the optimizer has no layer-wise rates; at the first record, if a pattern matches no
            tensor's path.
    """

    def __init__(
        self, show: Sequence[str] = ("rate",), tensors: Sequence[str] | None = None, every: int | str = 1
    ) -> None:
        super().__init__(every, any(name in show for name in ("batch_gradient_norm", "gradient_agreement")))
        unknown = [name for name in show if name not in _NAMES]
        is_list = not isinstance(show, str) and bool(show) and not unknown
        require(is_list, "show", show, f"a list of some of {', '.join(_NAMES)}")
        self.show = tuple(show)
        names = tensors is None or not isinstance(tensors, str)
        require(names, "tensors", tensors, "a list of tensors' paths, or None for all")
        self.tensors = None if tensors is None else tuple(tensors)
        self._shown: dict[str, float] = {}

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Adds the values last read to the logs of the batch."""
        super().on_train_batch_end(batch, logs)
        _add(self._shown, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Adds the values last read to the logs of the epoch."""
        super().on_epoch_end(epoch, logs)
        _add(self._shown, logs)

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Keeps the values to show."""
        self._shown = {}
        if self.tensors is None:
            adapted = [value for value in values.values() if value.rate is not None]
            for name in self.show:
                known = [getattr(value, name) for value in adapted if getattr(value, name) is not None]
                if known:
                    self._shown[name] = statistics.median(known)
            return
        for pattern in self.tensors:
            matches = [path for path in values if re.search(pattern, path)]
            if not matches:
                examples = ", ".join(repr(path) for path in list(values)[:5])
                rule = f"patterns that each match one of the {len(values)} tensors' paths, such as {examples}"
                raise ValueError(message("tensors", rule, pattern))
            for path in matches:
                for name in self.show:
                    number = getattr(values[path], name)
                    if number is not None:
                        self._shown[f"{name}/{path}"] = number


def _add(shown: Mapping[str, float], logs: Mapping[str, Any] | None) -> None:
    # Keras hands one dictionary to all callbacks, its progress bar last.
    if isinstance(logs, dict):
        logs.update(shown)
