"""The logs of ConAdvModel: the losses of its streams, and what there is in training alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.conadv.attacked_loss import AttackedLoss
from tf_largebatch.conadv.auxiliary_batch_norm import AuxiliaryBatchNorms, batch_normalizations
from tf_largebatch.norms.shapes import Size
from tf_largebatch.training.step import Pass, Stream
from tf_largebatch.training.trainer import number_of_replicas
from tf_largebatch.training.updating_wrapper import UpdatingWrapper

CLEAN, ADVERSARIAL, AUGMENTED = "clean", "adversarial", "augmented"


class StreamMetrics(UpdatingWrapper):
    """The part of ConAdvModel that updates the metrics.

    Attributes:
        stream_losses: For each stream the mean of its loss without weight regularizers.
        adversarial_accuracy: On the adversarial images that are trained on, where answers are right or wrong.
        perturbation: The mean size of the perturbations.
    """

    stream_losses: dict[str, keras.metrics.Mean]
    adversarial_accuracy: keras.metrics.Mean
    perturbation: keras.metrics.Mean
    adversarial_batch_norms: AuxiliaryBatchNorms
    loss_to_attack: Callable[[], AttackedLoss]

    def step_logs(self) -> dict[str, Any]:
        """Returns the logs after a step: the metrics, those that there are in training alone included."""
        logs = self.get_metrics_result()
        for metric in self._training_metrics():
            if metric is not self.adversarial_accuracy or self.loss_to_attack().has_answers:
                logs[metric.name] = metric.result()
        if batch_normalizations(self.model):
            logs["bn_distance"] = self.adversarial_batch_norms.distance()
        return logs

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the compiled metrics and the loss. What there is in training alone is left to `fit`."""
        own = {metric.name for metric in self._training_metrics()}
        return {name: value for name, value in super().get_metrics_result().items() if name not in own}

    @property
    def metrics(self) -> list[Any]:
        """The wrapped model's, and those of training."""
        return [*super().metrics, *self._training_metrics()]

    def _training_metrics(self) -> list[keras.metrics.Metric]:
        if "perturbation" not in vars(self):  # while the constructor runs
            return []
        return [*self.stream_losses.values(), self.adversarial_accuracy, self.perturbation]

    def _update_metrics(self, stream: Stream, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """The compiled metrics see the clean images."""
        if stream.name == CLEAN:
            return super()._update_metrics(stream, x, y, y_pred, sample_weight)
        if stream.name == ADVERSARIAL:
            loss = self.loss_to_attack()
            if loss.has_answers:
                self.adversarial_accuracy.update_state(ops.cast(loss.are_right(y, y_pred), "float32"))
        return {}

    def _update_losses(self, streams: Sequence[Stream], result: Pass, batch_size: Size) -> None:
        """Updates the loss, and each stream's without weight regularizers."""
        super()._update_losses(streams, result, batch_size)
        penalties = [ops.cast(v.regularizer(v), "float32") for v in self.trainable_weights if v.regularizer is not None]
        for number, stream in enumerate(streams):
            loss = result.losses[number]
            if number == 0 and penalties:
                loss -= functools.reduce(operator.add, penalties)
            self.stream_losses[stream.name].update_state(loss * number_of_replicas(), sample_weight=batch_size)
