"""What LARS and CLARS did to each tensor in the last update, and a base class for callbacks that record it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tf_largebatch.callbacks.metrics import updates_taken
from tf_largebatch.check import flag, require
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.core.rates import l2_norm
from tf_largebatch.keras_internals import trained_variables
from tf_largebatch.training.trainer import in_strategy, synchronize


@dataclasses.dataclass(frozen=True)
class LayerwiseValues:
    """The rate and the norms of one tensor in one update.

    Attributes:
        rate: The layer-wise rate, without unit; None for a tensor without layer adaptation.
        weight_norm: `||w||` after the update.
        gradient_norm: The norm that the rate was divided by, before CLARS's cap of the agreement, in the unit of the
            mean loss's gradient: CLARS's mean per-example norm `s`, LARS's `||g||`; None if unknown.
        batch_gradient_norm: `||grad||`, the norm of the batch's gradient without weight decay, in the same unit; None
            unless the optimizer keeps it (`keep_batch_gradient_norms`).
        gradient_agreement: `M = ||grad|| / s`, from 0 (the examples' gradients cancel) to 1 (they are parallel); None
            unless both norms are known.
    """

    rate: float | None
    weight_norm: float
    gradient_norm: float | None = None
    batch_gradient_norm: float | None = None
    gradient_agreement: float | None = None


def layerwise_optimizer(model: keras.Model) -> Any:
    """Returns the model's CLARS or LARS, without a loss-scaling wrapper around it.

    Raises:
        ValueError: If the model's optimizer has no layer-wise rates.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    name = getattr(optimizer, "name", repr(optimizer))
    has_rates = hasattr(optimizer, "layerwise_rates")
    require(has_rates, "optimizer", name, "one with layer-wise rates", "compile the model with CLARS or LARS")
    return optimizer


def layerwise_values(model: keras.Model) -> dict[str, LayerwiseValues]:
    """Returns what the last update did to every tensor.

    Args:
        model: A model compiled with CLARS or LARS, or a wrapper of this package around one.

    Returns:
        `{label: values}` in the model's order. The label is the tensor's path, `"path#2"` for the second of that path.

    Raises:
        ValueError: If the optimizer has no layer-wise rates.
        RuntimeError: Before the first update.
    """
    optimizer = layerwise_optimizer(model)
    synchronize(model)
    rates, norms, adapted = optimizer.layerwise_rates(), optimizer.gradient_norms(), set(optimizer.adapted_tensors())
    batch_norms = optimizer.batch_gradient_norms()
    trained = trained_variables(optimizer)
    variables = dict(zip(variable_labels(trained), trained, strict=True))
    packed = ops.stack([ops.cast(l2_norm(variables[path]), "float32") for path in rates])
    weights = ops.convert_to_numpy(packed).tolist()
    # LARS divides by the norm of the gradient itself, which says nothing about the agreement of examples.
    per_example = hasattr(optimizer, "measured_gradient_norms")
    found = {}
    for (path, rate), weight in zip(rates.items(), weights, strict=True):
        s, whole = norms.get(path), batch_norms.get(path)
        known = per_example and s is not None and whole is not None and s > 0
        found[path] = LayerwiseValues(
            rate=rate if path in adapted else None,
            weight_norm=weight,
            gradient_norm=s,
            batch_gradient_norm=whole,
            gradient_agreement=whole / s if known else None,
        )
    return found


class LayerwiseCallback(keras.callbacks.Callback):
    """Calls `record` with the layer-wise values of chosen updates.

    Args:
        every: Record the first update and every update whose number is a multiple of this; `"epoch"` for the last of
            every epoch. With `steps_per_execution`, the end of the execution that holds such an update is recorded.
        batch_gradient_norms: Whether the optimizer keeps the norms of the batch's gradients, from which
            `gradient_agreement` follows: a pass over the gradients in every update.

    Raises:
        ValueError: If `every` is neither a positive integer nor `"epoch"`; when training begins, if the
            optimizer has no layer-wise rates.
    """

    def __init__(self, every: int | str = "epoch", batch_gradient_norms: bool = False) -> None:
        super().__init__()
        is_count = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        require(is_count or every == "epoch", "every", every, "a positive integer or 'epoch'")
        self.every = every
        self.batch_gradient_norms = flag("batch_gradient_norms", batch_gradient_norms)

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Records the values of an update; a subclass must define it.

        Args:
            update: Number of updates taken, from 1.
            values: The result of `layerwise_values`.
        """
        raise NotImplementedError

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the optimizer, and asks it for the norms of the batch's gradients if they are wanted."""
        optimizer = layerwise_optimizer(self.model)
        if self.batch_gradient_norms and not optimizer.keeps_batch_gradient_norms:
            with in_strategy(self.model):
                optimizer.keep_batch_gradient_norms()
            self.model.make_train_function(force=True)
        self._update = self._before_epoch = updates_taken(self.model)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Counts the updates that were already taken."""
        self._before_epoch = updates_taken(self.model)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records the first update and every update whose number is a multiple of `every`."""
        last, self._update = self._update, self._before_epoch + batch + 1
        if isinstance(self.every, int) and (last == 0 or self._update // self.every > last // self.every):
            self._record()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records the last update of the epoch, with `every="epoch"`."""
        if self.every == "epoch":
            self._record()

    def _record(self) -> None:
        try:
            values = layerwise_values(self.model)
        except RuntimeError:  # no update yet: a loss scale that was too large skipped the first
            return
        self.record(updates_taken(self.model), values)
