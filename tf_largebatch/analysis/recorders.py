"""Callbacks that watch a loss surface while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tf_largebatch.analysis.loss_surface import LossSurface
from tf_largebatch.check import require


class SurfaceRecorder(keras.callbacks.Callback):
    """Evaluates a function of the loss surface after chosen epochs.

        recorder = SurfaceRecorder(lambda surface: float(sharpness(surface)[0]), x, y)

    Args:
        function: Takes a `LossSurface`, such as `sharpness`, `layer_sharpness` or `lipschitz_estimates`.
        x: Input of the examples of the surface.
        y: Their targets.
        every: Epochs between two evaluations.
        **arguments: Further arguments of `LossSurface`.

    Attributes:
        epochs: Numbers of the epochs, from 1; 0 is before training.
        values: What the function returned after each.
    """

    def __init__(
        self, function: Callable[[LossSurface], Any], x: Any, y: Any, every: int = 1, **arguments: Any
    ) -> None:
        super().__init__()
        require(isinstance(every, int) and every > 0, "every", every, "a whole number above 0")
        self._function, self._data, self._every, self._arguments = function, (x, y), every, arguments
        self._surface: LossSurface | None = None
        self.epochs: list[int] = []
        self.values: list[Any] = []

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Evaluates before the first epoch, if the model is built."""
        self.epochs, self.values, self._surface = [], [], None
        if self.model.built:
            self._evaluate(0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Evaluates after every `every`-th epoch."""
        if (epoch + 1) % self._every == 0:
            self._evaluate(epoch + 1)

    def _evaluate(self, epoch: int) -> None:
        if self._surface is None:
            self._surface = LossSurface(self.model, *self._data, **self._arguments)
        self.epochs.append(epoch)
        self.values.append(self._function(self._surface))
