"""A batch that grows while a model trains: as its gradient noise does, or by a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_largebatch.callbacks.noise_scale import NoiseScale, noise_scale_of
from tf_largebatch.check import flag, number, require
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.training.accumulation import Accumulation
from tf_largebatch.training.noise_scale import NoiseScaleAverages, from_last_batch_norm
from tf_largebatch.training.trainer import synchronize

_LAYERS = ("all", "normalization")
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)


class GrowBatchSize(keras.callbacks.Callback):
    """Makes each update from as many batches as the gradient noise asks for, and logs `batch_size` every epoch.

        batch size of an update ~ multiple * noise scale,        between minimum and maximum

    The data keep their batches: an update is made of the k of them whose examples come nearest to that size. Gradient
    and norms are those of the k batches together. k is a variable of the compiled step: to change it compiles nothing.
    A group of batches that an epoch leaves unfinished goes on in the next, and in the next `fit` with this callback;
    what `fit` leaves at its end has changed no weight. Learning-rate schedules count updates, and there are fewer of
    them when batches grow.

    The noise scale is that of `GradientNoiseScale`, averaged over updates; it is logged too, as `noise_scale`. From one
    look to the next the batch at most doubles or halves. Where the gradient is lost in the noise it doubles.

    With `schedule` the batch grows as you say instead: where a schedule would divide the learning rate by a factor,
    multiply the batch by it and leave the rate alone.

    Use with `tf_largebatch.LargeBatchModel` and any optimizer, on one device or with `keras.distribution`. With
    `ConAdvModel`, whose examples have several gradients each, only `schedule` works, and weights are as stale as
    `staleness` batches. It needs memory for one more copy of the trained weights.

    Args:
        maximum: The most examples of an update.
        minimum: The fewest examples of an update; None for one batch.
        multiple: Batch size in units of the noise scale; 1 takes about twice the fewest possible updates and twice the
            fewest possible examples. None with `schedule`.
        schedule: `{epoch: examples}`, from which epoch on an update has how many, beginning with epoch 0; or a function
            of the epoch that returns the examples. None to follow the noise scale.
        layers: Which tensors the noise scale is taken of: `"all"`, or those of the `"normalization"` layers, which
            predict that of the whole network but for a factor (Gray et al.). All are measured in either case. With
            batch normalization either begins at the last one, as in `GradientNoiseScale`.
        every: After how many batches of the data the batch size is chosen again; `"epoch"` for the end of every epoch.
            Each look copies a few numbers from the device.
        decay: Decay of the averages from update to update, at least 0 and below 1.
        grow_only: Whether the batch never shrinks.

    Raises:
        ValueError: If an argument is out of its range; when training begins, if the model measures no per-example
            norms, trains on several replicas of `tf.distribute`, or accumulates gradients already.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162; Smith et al., "Don't
    Decay the Learning Rate, Increase the Batch Size", arXiv 1711.00489 (the schedule); Gray et al., "Normalization
    Layer Per-Example Gradients are Sufficient to Predict Gradient Noise Scale in Transformers", arXiv 2411.00999.
    """

    def __init__(
        self,
        maximum: int,
        minimum: int | None = None,
        multiple: float | None = None,
        schedule: Mapping[int, int] | Callable[[int], float] | None = None,
        layers: str = "all",
        every: int | str = "epoch",
        decay: float = 0.95,
        grow_only: bool = False,
    ) -> None:
        super().__init__()
        whole = float.is_integer
        self.maximum = int(number("maximum", maximum, lambda v: v >= 1 and whole(v), "a whole number of 1 or more"))
        rule = f"a whole number from 1 to maximum={self.maximum}, or None"
        low = 0.0
        if minimum is not None:
            low = number("minimum", minimum, lambda v: 1 <= v <= self.maximum and whole(v), rule)
        self.minimum = None if minimum is None else int(low)
        require(multiple is None or schedule is None, "multiple", multiple, "None with schedule")
        self.multiple = 1.0 if multiple is None else multiple
        number("multiple", self.multiple, lambda v: 0 < v < math.inf, "above 0 and finite")
        self.schedule = None if schedule is None else _checked_schedule(schedule)
        require(layers in _LAYERS, "layers", layers, f"one of {', '.join(map(repr, _LAYERS))}")
        require(schedule is None or layers == "all", "layers", layers, "'all' with schedule, which measures nothing")
        self.layers = layers
        positive = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        require(positive or every == "epoch", "every", every, "a positive integer or 'epoch'")
        require(schedule is None or every == "epoch", "every", every, "'epoch' with schedule, which is one of epochs")
        self.every = every
        self.decay = number("decay", decay, lambda v: 0 <= v < 1, "at least 0 and below 1")
        self.grow_only = flag("grow_only", grow_only)
        self._accumulation = Accumulation(low, low, self.maximum)
        self._averages: NoiseScaleAverages | None = None
        self._stays = False
        self._seen = 0

    @property
    def batch_size(self) -> int:
        """Number of examples of the last update; 0 before the first one."""
        return self._accumulation.last_batch_size

    @property
    def noise_scale(self) -> NoiseScale:
        """The noise scale of the tensors that are looked at."""
        averages = self.model.noise_scale_averages or self._averages
        if averages is None:
            return NoiseScale(math.nan, math.nan, math.nan)
        gradients, traces = averages.read()
        if averages.trained:
            kept = from_last_batch_norm(self.model.model, averages.trained)
            if self.layers == "normalization":
                chosen = _of_normalizations(self.model)
                of_these = np.array([id(v) in chosen for v in averages.trained], bool)
                kept = kept & of_these if (kept & of_these).any() else of_these
            gradients, traces = gradients[kept], traces[kept]
        return noise_scale_of(gradients.sum(), traces.sum())

    def attach(self, model: keras.Model) -> None:
        """Makes the model train so from now on, outside `fit` too; `load_checkpoint` can then restore the group."""
        self._stays = True
        self._start(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Makes the model train so."""
        self._start(self.model)
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Sets the epoch's batch size, if there is a schedule."""
        if self.schedule is not None:
            self._accumulation.target = self.schedule(epoch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Chooses the batch size after every `every` batches."""
        self._seen += 1
        if isinstance(self.every, int) and self._seen % self.every == 0:
            synchronize(self.model)
            self._choose()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the size of the last update and the noise scale, then chooses the next size."""
        if logs is not None:
            logs["batch_size"] = self.batch_size
            if self.schedule is None:
                logs["noise_scale"] = self.noise_scale.noise_scale
        if self.every == "epoch":
            self._choose()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leaves the model as it was; the group of batches and the averages stay here for the next `fit`."""
        if not self._stays:
            self.model.accumulate(None)
            if self.model.noise_scale_averages is self._averages:
                self.model.record_noise_scale(None)

    def _start(self, model: keras.Model) -> None:
        require(
            hasattr(model, "accumulate"),
            "model",
            model.name,
            "one that measures per-example gradient norms with GrowBatchSize",
            "wrap it in tf_largebatch.LargeBatchModel",
        )
        variables = [id(v) for v in model.trainable_variables]
        if self._accumulation.trained and [id(v) for v in self._accumulation.trained] != variables:
            low = float(self.minimum or 0)
            self._accumulation, self._averages = Accumulation(low, low, self.maximum), None
        if model.accumulation is not self._accumulation:
            model.accumulate(self._accumulation, until_fit_ends=not self._stays)
        # Another callback may have the noise scale recorded.
        if self.schedule is None and model.noise_scale_averages is None:
            if self._averages is None:
                self._averages = NoiseScaleAverages(self.decay)
            model.record_noise_scale(self._averages, until_fit_ends=not self._stays)
        if self.layers == "normalization" and model.model.built:
            require(
                bool(_of_normalizations(model)), "layers", self.layers, "'all' for a model without normalization layers"
            )

    def _choose(self) -> None:
        """Moves the target towards the multiple of the noise scale."""
        if self.schedule is not None:
            return
        present, noise = self.batch_size, self.noise_scale.noise_scale
        if not present or math.isnan(noise):
            return
        lowest = present if self.grow_only else present / 2
        self._accumulation.target = min(max(self.multiple * noise, lowest), 2 * present)


def _of_normalizations(model: keras.Model) -> set[int]:
    """Returns the identities of the variables that normalization layers train."""
    layers = (layer for layer in layers_within(model) if isinstance(layer, _NORMALIZATIONS))
    return {id(v) for layer in layers for v in layer.trainable_variables}


def _checked_schedule(schedule: Mapping[int, int] | Callable[[int], float]) -> Callable[[int], float]:
    """Returns the schedule as a function of the epoch."""
    if callable(schedule):
        return schedule
    rule = "a function of the epoch, or {epoch: examples} with epochs from 0 on and examples of 1 or more"
    pairs = isinstance(schedule, Mapping) and all(
        isinstance(value, int) and not isinstance(value, bool) for pair in schedule.items() for value in pair
    )
    valid = pairs and 0 in schedule and min(schedule) == 0 and min(schedule.values()) >= 1
    require(bool(valid), "schedule", schedule, rule)
    steps = sorted(schedule.items())
    return lambda epoch: next(examples for first, examples in reversed(steps) if first <= epoch)
