"""The gradient noise scale over time."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import keras

from tf_largebatch.callbacks.metrics import updates_taken
from tf_largebatch.check import number
from tf_largebatch.core.noise_scale import simple_noise_scale
from tf_largebatch.core.paths import variable_path
from tf_largebatch.files import local_path, naming_damage, replacing
from tf_largebatch.training.noise_scale import NoiseScaleAverages, from_last_batch_norm
from tf_largebatch.training.trainer import in_strategy

_COLUMNS = ("update", "variable", "noise_scale", "squared_gradient", "variance")


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """The noise scale of one tensor, or of the network, and what it is the quotient of.

    Attributes:
        noise_scale: `variance / squared_gradient`, in examples; inf where the gradient is lost in the noise, NaN where
            there is neither.
        squared_gradient: Estimate of `||G||^2`, G the expected gradient; negative where noise outweighs it.
        variance: Estimate of `tr(Sigma)`, the sum of the variances of all entries of an example's gradient.
    """

    noise_scale: float
    squared_gradient: float
    variance: float


class GradientNoiseScale(keras.callbacks.Callback):
    """Estimates the batch size beyond which more examples hardly help, and logs it as `noise_scale` every epoch.

        noise_scale = tr(Sigma) / ||G||^2

    with G the mean and Sigma the covariance of the examples' gradients, estimated without bias from the per-example
    norms and the batch's gradient, numerator and denominator averaged over the updates before they are divided. A batch
    well below the noise scale can be doubled for nearly half of the updates; well above it, doubling saves nearly none.
    It grows as training goes on.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, arXiv 1812.06162, the simple noise
    scale of section 2.2. It assumes a well-conditioned loss, examples drawn independently, and a loss that is a mean
    over them. Training-mode batch normalization makes the gradients of the layers before it depend on all examples of
    the batch, so that their estimates say too much, or inf. The network's noise scale is therefore that of the last
    batch normalization and of the layers after it; without batch normalization, of all tensors. Example weights count
    as part of the losses; weight regularizers and the optimizer's weight decay do not count.

    Use with `tf_largebatch.LargeBatchModel` and any optimizer; the model then measures norms even if the optimizer
    reads none. `norm_examples` makes it cheaper. Place it before callbacks that read the logs.

    Args:
        path: A CSV file for one row a tensor and epoch: `update`, `variable` (its path), `noise_scale`,
            `squared_gradient`, `variance` as in `NoiseScale`; None for none. A model that has already taken steps
            continues the file: rows of later updates are dropped.
        decay: Of the exponential moving averages, at least 0 and below 1, from update to update: 0.95 looks back over
            some twenty. Numbers of single updates scatter, the denominator above all.

    Raises:
        ValueError: If `decay` is out of its range, and when training begins, if the model does not measure per-example
            norms.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, decay: float = 0.95) -> None:
        super().__init__()
        number("decay", decay, lambda d: 0 <= d < 1, "at least 0 and below 1")
        self.path = None if path is None else local_path(path)
        self.decay = decay
        self._averages: NoiseScaleAverages | None = None
        self._network: Any = None
        self._stays = False

    def attach(self, model: keras.Model) -> None:
        """Makes the model measure from now on, outside `fit` too; `load_checkpoint` can then restore the averages."""
        self._stays = True
        self._start(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Makes the model measure, and keeps the rows of the updates already taken."""
        self._start(self.model)
        self.model.make_train_function(force=True)
        if self.path is not None:
            update = updates_taken(self.model)
            with naming_damage(self.path):
                kept = [row for row in _read_rows(self.path) if int(row[0]) <= update]
            with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file).writerows([_COLUMNS, *kept])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the network's noise scale and writes those of its tensors."""
        if logs is not None:
            logs["noise_scale"] = self.of_network().noise_scale
        if self.path is not None:
            update = updates_taken(self.model)
            rows = [(update, path, *map(repr, dataclasses.astuple(one))) for path, one in self.of_tensors().items()]
            with open(self.path, "a", newline="") as file:
                csv.writer(file).writerows(rows)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leaves the model as it was; the averages stay here, and go on if the model is fitted again."""
        if not self._stays:
            self.model.record_noise_scale(None)

    def of_network(self) -> NoiseScale:
        """Of all trainable tensors together; with batch normalization, of those from the last one on (see above)."""
        gradient, trace = self._read()
        if self._averages is not None and self._averages.trained:
            kept = from_last_batch_norm(self._network, self._averages.trained)
            gradient, trace = gradient[kept], trace[kept]
        return noise_scale_of(gradient.sum(), trace.sum())

    def of_tensors(self) -> dict[str, NoiseScale]:
        """Of each trainable tensor, before batch normalizations too: `{variable path: NoiseScale}`."""
        gradients, traces = self._read()
        paths = [variable_path(v) for v in self._averages.trained] if self._averages else []
        return {path: noise_scale_of(*pair) for path, *pair in zip(paths, gradients, traces, strict=True)}

    def _start(self, model: keras.Model) -> None:
        if not hasattr(model, "record_noise_scale"):
            raise ValueError(
                f"GradientNoiseScale needs a model that measures per-example gradient norms, got {model.name!r}: "
                "wrap it in tf_largebatch.LargeBatchModel."
            )
        self._network = model.model
        variables = model.trainable_variables
        if self._averages is None or [id(v) for v in variables] != [id(v) for v in self._averages.trained]:
            self._averages = NoiseScaleAverages(self.decay)
        if model.model.built:  # else fit builds both in the first step
            with in_strategy(model):
                self._averages.build(variables)
        if model.noise_scale_averages is not self._averages:
            model.record_noise_scale(self._averages, until_fit_ends=not self._stays)

    def _read(self) -> tuple[Any, Any]:
        if self._averages is None:
            raise RuntimeError("GradientNoiseScale has seen no training yet: pass it to fit first.")
        return self._averages.read()


def readable_noise_scale(value: float) -> str:
    """Two digits: a noise scale is seldom known better."""
    if math.isfinite(value):
        return f"{float(f'{value:.2g}'):g}" if value < 10 else f"{float(f'{value:.2g}'):.0f}"
    return "beyond measure: the gradient is lost in the noise" if value > 0 else "unknown"


def noise_scale_of(gradient: float, trace: float) -> NoiseScale:
    """Returns the noise scale from the averages of the estimates of `||G||^2` and `tr(Sigma)`."""
    return NoiseScale(float(simple_noise_scale(gradient, trace)), float(gradient), float(trace))


def read_noise_scales(path: str | os.PathLike[str]) -> list[tuple[int, str, NoiseScale]]:
    """Returns the rows of a CSV file that `GradientNoiseScale` wrote: update, variable, and its noise scale."""
    with naming_damage(path):
        return [(int(update), name, NoiseScale(*map(float, rest))) for update, name, *rest in _read_rows(path)]


def _read_rows(path: str | os.PathLike[str]) -> list[list[str]]:
    """Without the header and without a row cut short at the end; none if the file is missing."""
    path = local_path(path)
    if not path.exists():
        return []
    text = path.read_text()
    return list(csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]))
