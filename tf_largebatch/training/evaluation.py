"""Evaluation in micro-batches: the outputs are those of the whole batch, and so are its loss and metrics."""

from __future__ import annotations

from typing import Any

import keras

from tf_largebatch import keras_internals
from tf_largebatch.norms.shapes import Size
from tf_largebatch.training.micro_batches import MicroBatches, batch_size_of
from tf_largebatch.training.trainer import scratch_scope, specs_of


class Outputs:
    """A model's outputs for a batch, computed a micro-batch at a time, with their masks and logits.

    Args:
        model: The model.
        x: Inputs, nested tensors with the examples on axis 0; only their shapes are read.
        size: How many examples run at a time.

    Attributes:
        add_losses: Whether layers add losses in the pass, which the loss of a batch that is split would lack.
    """

    def __init__(self, model: keras.Model, x: Any, size: Size) -> None:
        self._model, self._size = model, size
        self._structure: Any = None
        self.add_losses = False
        self._specs = specs_of(self._traced, x)

    def of_batch(self, x: Any) -> Any:
        """Returns the outputs for a batch."""
        batches = MicroBatches(x, batch_size_of(x), self._size)
        _, found = batches.added(lambda part, _: ([], self._listed(part)), [], self._specs)
        outputs, masked, with_logits = self._structure
        flat, rest = list(found[: len(masked)]), iter(found[len(masked) :])
        for output, has_mask in zip(flat, masked, strict=True):
            if has_mask:
                keras_internals.set_keras_mask(output, next(rest))
        for output, has_logits in zip(flat, with_logits, strict=True):
            if has_logits:
                keras_internals.keep_logits(output, next(rest))
        return keras.tree.pack_sequence_as(outputs, flat)

    def _traced(self, x: Any) -> list[Any]:
        with scratch_scope(collect_losses=True):
            found = self._listed(x)
            with keras_internals.without_weight_regularizers(self._model):
                self.add_losses = bool(self._model.losses)
        return found

    def _listed(self, x: Any) -> list[Any]:
        """Returns the outputs, the masks of those that have one, and the logits of those that have some."""
        outputs = self._model(x, training=False)
        flat = keras.tree.flatten(outputs)
        masks = [keras_internals.keras_mask(t) for t in flat]
        logits = [keras_internals.logits_kept_by_keras(t) for t in flat]
        structure = keras.tree.map_structure(lambda _: 0, outputs)
        self._structure = structure, [m is not None for m in masks], [t is not None for t in logits]
        return [*flat, *(m for m in masks if m is not None), *(t for t in logits if t is not None)]
