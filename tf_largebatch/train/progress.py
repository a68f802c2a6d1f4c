"""Shows how far a run is: one line that is rewritten on a terminal, one line an epoch in a file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import keras

# Seconds between two changes of the line. Reading a loss waits for the device.
_EVERY = 0.5
_SHOWN = (
    "loss",
    "clean_loss",
    "adversarial_loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "adversarial_accuracy",
    "noise_scale",
)


class Progress(keras.callbacks.Callback):
    """Prints updates, losses, accuracies and the time left.

    Args:
        epochs: Epochs of the run.
        steps_per_epoch: Updates of one epoch.
        last_epoch: The epoch after which this process stops.
        rewrite: Whether to rewrite one line, as a terminal can; else there is one line an epoch.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, last_epoch: int, rewrite: bool) -> None:
        super().__init__()
        self.epochs, self.steps_per_epoch, self.last_epoch, self.rewrite = epochs, steps_per_epoch, last_epoch, rewrite
        self._evaluated: dict[str, float] = {}
        self._since: tuple[float, int] | None = None
        self._changed, self._width = -math.inf, 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clock of the epoch."""
        self._epoch, self._began = epoch, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Rewrites the line from time to time."""
        now, update = time.perf_counter(), self._epoch * self.steps_per_epoch + batch + 1
        if self._since is None:  # the first update compiles the step
            self._since = (now, update)
        if self.rewrite and now - self._changed >= _EVERY:
            self._changed = now
            values = {**_numbers(logs), **self._evaluated}
            total = self.epochs * self.steps_per_epoch
            place = f"epoch {self._epoch + 1}/{self.epochs}, update {update}/{total}"
            self._write(f"{place}: {_in_words(values)}{self._time_left(now, update)}")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Rewrites the line, or prints one."""
        now, update = time.perf_counter(), (epoch + 1) * self.steps_per_epoch
        values = _numbers(logs)
        self._evaluated = {name: value for name, value in values.items() if name.startswith("val_")}
        took = f"; {now - self._began:.1f} s"
        line = f"epoch {epoch + 1}/{self.epochs}, {update} updates: {_in_words(values)}{took}"
        line += self._time_left(now, update)
        if self.rewrite:
            self._write(line)
        else:
            print(line, flush=True)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Ends the line."""
        if self.rewrite and self._width:
            print(flush=True)

    def _time_left(self, now: float, update: int) -> str:
        left = self.last_epoch * self.steps_per_epoch - update
        if self._since is None or update <= self._since[1] or not left:
            return ""
        seconds = round((now - self._since[0]) / (update - self._since[1]) * left)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f", {f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d} left"

    def _write(self, line: str) -> None:
        sys.stdout.write("\r" + line.ljust(self._width))
        sys.stdout.flush()
        self._width = len(line)


def _numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns the numbers to show: of adversarial training the losses of its streams, not their sum."""
    shown = dict(logs or {})
    if "clean_loss" in shown:
        shown.pop("loss", None)
    return {name: float(keras.ops.convert_to_numpy(value)) for name, value in shown.items() if name in _SHOWN}


def _in_words(values: Mapping[str, float]) -> str:
    words = []
    for name in _SHOWN:
        if name in values:
            digits = ".3g" if name == "noise_scale" else ".4f"
            words.append(f"{name.replace('_', ' ')} {values[name]:{digits}}")
    return ", ".join(words)
