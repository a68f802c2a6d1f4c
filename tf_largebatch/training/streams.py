"""Training passes over several views of one batch ("streams"), each through batch normalisations of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.conadv.auxiliary_batch_norm import AuxiliaryBatchNorms
from tf_largebatch.conadv.class_labels import are_right
from tf_largebatch.norms.shapes import static_or_dynamic_size
from tf_largebatch.optimizers.replica_local import ReplicaLocal
from tf_largebatch.training.large_batch_model import LargeBatchModel, _undo_replica_share
from tf_largebatch.training.micro_batches import StepResult

CLEAN, ADVERSARIAL, AUGMENTED = "clean", "adversarial", "augmented"


class StreamsModel(LargeBatchModel):
    """The training half of `ConAdvModel`: from clean images, copies and augmented views to the gradient of their loss.

    Losses, gradients and norms of the streams are added up; the weight regularisers count once. A subclass makes the
    views, and sets `_classes`, `adversarial_weight`, `adversarial_set` and `augmented_set`.
    """

    adversarial_weight: float
    adversarial_set: AuxiliaryBatchNorms
    augmented_set: AuxiliaryBatchNorms | None
    _classes: Any

    def _watch_streams(self, names: Sequence[str]) -> None:
        """Makes the metrics of these streams."""
        self.stream_losses = {name: keras.metrics.Mean(name=f"{name}_loss") for name in names}
        self.adversarial_accuracy = keras.metrics.Mean(name="adversarial_accuracy")
        self.perturbation = keras.metrics.Mean(name="perturbation")
        # In a pass of another stream than the clean one, whose loss takes in the weight regularisers for all.
        self._without_regularizers = ReplicaLocal()

    def _own_metrics(self) -> list[keras.metrics.Metric]:
        return [*self.stream_losses.values(), self.adversarial_accuracy, self.perturbation]

    @property
    def losses(self) -> list[Any]:
        """As Keras's; without the weight regularisers, which count once, in the streams after the first."""
        found = super().losses
        if self._without_regularizers.get():
            found = found[: len(found) - sum(v.regularizer is not None for v in self.trainable_weights)]
        return found

    def _step(self, data: tuple[Any, ...], examples: int | None) -> StepResult:
        """The passes of all streams over a batch or micro-batch."""
        x, y, sample_weight, copies, augmented = data
        results: list[StepResult] = []
        for name, images in {CLEAN: x, ADVERSARIAL: copies, AUGMENTED: augmented}.items():
            if images is not None:
                images = _after(results[-1:], images)
                results.append(self._stream(name, images, y, sample_weight, examples))
        gradients = [_added(parts) for parts in zip(*(r.gradients for r in results), strict=True)]
        norms = [_added(parts) for parts in zip(*(r.norms for r in results), strict=True)]
        if not self._reads_norms():
            norms = self._replica_norms(gradients)
        return StepResult(tf.add_n([r.loss for r in results]), gradients, norms)

    def _stream(self, name: str, x: tf.Tensor, y: Any, sample_weight: Any, examples: int | None) -> StepResult:
        """Forward and backward pass of one stream, and its update of the metrics."""
        weight = self.adversarial_weight if name == ADVERSARIAL else 1.0
        bn_set = {CLEAN: None, ADVERSARIAL: self.adversarial_set, AUGMENTED: self.augmented_set}[name]
        unscaled: list[tf.Tensor] = []

        def compute_loss(y_pred: Any, regularizers: bool) -> tf.Tensor:
            with self._without_regularizers.holding(not regularizers):
                return self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

        def loss(y_pred: Any) -> tf.Tensor:
            unscaled.append(compute_loss(y_pred, regularizers=name == CLEAN))
            return self.optimizer.scale_loss(weight * unscaled[0])

        replacements = None if bn_set is None else bn_set.replacements()
        y_pred, gradients, norms, _ = self._differentiate(x, loss, examples, replacements)
        size = static_or_dynamic_size(x, 0)
        shown = compute_loss(y_pred, regularizers=False) if name == CLEAN else unscaled[0]
        self.stream_losses[name].update_state(_undo_replica_share(shown), sample_weight=size)
        if name == CLEAN:
            self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        elif name == ADVERSARIAL:
            right = are_right(y, y_pred, self._classes)
            self.adversarial_accuracy.update_state(tf.cast(right, tf.float32))
        return StepResult(weight * tf.cast(unscaled[0], tf.float32), gradients, norms)


def _added(parts: Sequence[Any]) -> Any:
    """The sum of those that are not None; None if all are."""
    present = [tf.convert_to_tensor(part) for part in parts if part is not None]
    return tf.add_n(present) if present else None


def _after(results: Sequence[StepResult], images: tf.Tensor) -> tf.Tensor:
    """The images, once these passes are done: their activations have been freed then."""
    done = [tensor for result in results for tensor in (*result.gradients, *result.norms) if tensor is not None]
    with tf.control_dependencies(done):
        return tf.identity(images)
