"""What LARS and CLARS did to each tensor in the last update, and a base for callbacks that keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.callbacks.metrics import updates_taken
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.core.rates import l2_norm


@dataclasses.dataclass(frozen=True)
class LayerwiseValues:
    """One tensor in one update.

    Attributes:
        rate: The layer-wise rate, without unit; None for a tensor without layer adaptation.
        weight_norm: `||w||` after the update.
        gradient_norm: What the rate was divided by, in the unit of the mean-loss gradient: CLARS's mean
            per-example norm `s`, LARS's `||g||`; None if unknown.
        batch_gradient_norm: `||grad||`, the norm of the batch's gradient without weight decay, in the same
            unit; None unless the optimizer keeps it (`keep_batch_gradient_norms`).
        gradient_agreement: `M = ||grad|| / s`, from 0 (the examples' gradients cancel) to 1 (they are
            parallel); None unless both are known.
    """

    rate: float | None
    weight_norm: float
    gradient_norm: float | None = None
    batch_gradient_norm: float | None = None
    gradient_agreement: float | None = None


def layerwise_optimizer(model: keras.Model) -> Any:
    """The model's CLARS or LARS, out of its loss-scaling wrapper.

    Raises:
        ValueError: If its optimizer has no layer-wise rates.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not hasattr(optimizer, "layerwise_rates"):
        name = getattr(optimizer, "name", repr(optimizer))
        raise ValueError(f"`optimizer` must have layer-wise rates, as CLARS and LARS do; received {name}.")
    return optimizer


def layerwise_values(model: keras.Model) -> dict[str, LayerwiseValues]:
    """What the last update did to every tensor it updated.

    Args:
        model: A model compiled with CLARS or LARS, or a wrapper of this package around one.

    Returns:
        `{variable path: values}` in the model's order.

    Raises:
        ValueError: If the optimizer has no layer-wise rates.
        RuntimeError: Before the first update.
    """
    optimizer = layerwise_optimizer(model)
    rates, norms, adapted = optimizer.layerwise_rates(), optimizer.gradient_norms(), set(optimizer.adapted_tensors())
    batch_norms = optimizer.batch_gradient_norms()
    variables = dict(zip(variable_labels(optimizer._trainable_variables), optimizer._trainable_variables, strict=True))
    weights = tf.stack([tf.cast(l2_norm(variables[path]), tf.float32) for path in rates]).numpy().tolist()
    # LARS divides by the norm of the gradient itself: no agreement of examples can be read from it.
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
        every: The first update and every update whose number is a multiple of this; `"epoch"` for the last of
            every epoch.
        batch_gradient_norms: Whether the optimizer keeps the norms of the batch's gradients, from which
            `gradient_agreement` follows: a pass over the gradients in every update.

    Raises:
        ValueError: If `every` is neither a positive integer nor `"epoch"`; when training begins, if the
            optimizer has no layer-wise rates.
    """

    def __init__(self, every: int | str = "epoch", batch_gradient_norms: bool = False) -> None:
        super().__init__()
        if every != "epoch" and not (isinstance(every, int) and not isinstance(every, bool) and every >= 1):
            raise ValueError(f"`every` must be a positive integer or 'epoch'; received every={every!r}.")
        self.every = every
        self.batch_gradient_norms = batch_gradient_norms

    def record(self, update: int, values: dict[str, LayerwiseValues]) -> None:
        """Keeps the values of an update; for subclasses.

        Args:
            update: Number of updates taken, from 1.
            values: What `layerwise_values` found.
        """
        raise NotImplementedError

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the optimizer, and counts the updates already taken."""
        optimizer = layerwise_optimizer(self.model)
        if self.batch_gradient_norms and not optimizer.keeps_batch_gradient_norms:
            with self.model.distribute_strategy.scope():
                optimizer.keep_batch_gradient_norms()
            self.model.make_train_function(force=True)
        self._update = updates_taken(self.model)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records, if it is this update's turn."""
        self._update += 1
        if isinstance(self.every, int) and (self._update == 1 or self._update % self.every == 0):
            self._record()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records, if epochs are wanted."""
        if self.every == "epoch":
            self._record()

    def _record(self) -> None:
        try:
            values = layerwise_values(self.model)
        except RuntimeError:  # No step yet: a loss scale that was too large skipped the first.
            return
        self.record(updates_taken(self.model), values)
