"""The host's image classification with measured gradient norms and concurrent adversarial learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.vision.tasks import image_classification as host

from tf_largebatch.conadv.auxiliary_batch_norm import distance
from tf_largebatch.core.exclusions import Exclusion
from tf_largebatch.model_garden import configs, inputs
from tf_largebatch.model_garden.conadv import Adversary
from tf_largebatch.model_garden.micro_batches import in_micro_batches
from tf_largebatch.model_garden.passes import Pass, added, registry_of, run_pass
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line
from tf_largebatch.model_garden.streams import Blueprint, batch_norms
from tf_largebatch.norms import check_supported
from tf_largebatch.tf_keras.optimizers import clars_of

# Logged beside the host's metrics with ConAdv, means over a loop's steps. The perturbation is in pixels of 255,
# bn_distance how far the adversarial batch norms' statistics are from the clean ones'.
STREAM_METRICS = ("clean_loss", "adversarial_loss", "adversarial_accuracy", "perturbation", "bn_distance")


class StreamMean(tf_keras.metrics.Mean):
    """A mean over training steps of something the host does not know."""


@task_factory.register_task_cls(configs.LargeBatchTask)
class LargeBatchTask(host.ImageClassificationTask):
    """Image classification whose training step measures the norms that CLARS asks for and runs ConAdv.

    * With the optimizer `clars` each step measures `s_k = (1/B) sum_i ||grad_k f_i||` as `task.gradient_norms` says and
      hands it over. Other optimizers get plain gradients.
    * With `task.conadv.enabled` each step trains on the clean images through the model, on their adversarial copies
      through a sibling with batch norms of its own, and with `augment` on a further view through a third:

          loss = L(clean) + adversarial_weight * L(adversarial) + L(augmented)

      each L a mean over the batch. Evaluation, moving average (`ema`) and export know the model only. The siblings'
      batch norms and the weights of past steps are saved in checkpoints beside the optimizer.

    Sources: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576; Liu, Chen, Cheng, Hsieh,
    You, "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221, algorithm 1.
    """

    def __init__(self, params: configs.LargeBatchTask, logging_dir: str | None = None, name: str | None = None) -> None:
        super().__init__(params, logging_dir=logging_dir, name=name)
        self._clean: Blueprint | None = None
        self._siblings: list[Blueprint] = []
        self._adversary: Adversary | None = None

    def build_model(self) -> tf_keras.Model:
        """The host's model; with ConAdv its siblings are built along, of which the model knows nothing."""
        build = super().build_model
        try:
            clean = Blueprint(build)
        except (LookupError, TypeError, ValueError) as error:
            backbone = self.task_config.model.backbone.type
            raise ConfigurationError(f"task.model cannot be built with {backbone}: {one_line(error)}") from error
        self._trained = clean.network.trainable_variables
        self._model_to_measure = clean.network
        if not self.task_config.conadv.enabled:
            return clean.network
        adversarial = clean.twin()
        augmented = [clean.twin()] if self.task_config.conadv.augment is not None else []
        self._clean, self._siblings = clean, [adversarial, *augmented]
        model_config, data = self.task_config.model, self.task_config.train_data
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._adversary = Adversary(
            self.task_config.conadv,
            adversarial,
            model_config.num_classes,
            (data.global_batch_size // replicas, *model_config.input_size),
            data.dtype,
            self.task_config.micro_batch_size,
        )
        return clean.network

    def initialize(self, model: tf_keras.Model) -> None:
        """Loads a pretrained checkpoint if there is one; ConAdv then starts from its weights."""
        super().initialize(model)
        for sibling in self._siblings:
            for mine, original in zip(sibling.network.variables, model.variables, strict=True):
                if mine is not original:
                    mine.assign(original)
        if self._adversary is not None:
            self._adversary.forget()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The host's optimizer; ConAdv's state is saved with it, since neither is part of an exported model."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self._check_optimizer(optimizer, *args, **kwargs)
        if self._adversary is not None:
            state = tf.Module(name="conadv")
            state.batch_norms = [sibling.own for sibling in self._siblings]
            state.past, state.age = self._adversary.past, self._adversary.age
            optimizer._track_trackable(state, name="conadv")
            optimizer.iterations  # noqa: B018  (creates the counter, which the attack's seeds read)
        return optimizer

    def _check_optimizer(self, optimizer: Any, config: Any, *_: Any, **__: Any) -> None:
        """Refuses, before training, patterns that match no variable and layers whose norms cannot be measured."""
        arguments = config.optimizer.get()
        for field in ("exclude_from_layer_adaptation", "exclude_from_weight_decay"):
            if isinstance(arguments, configs.LayerwiseConfig) and getattr(arguments, field) is not None:
                path = f"trainer.optimizer_config.optimizer.{config.optimizer.type}"
                try:
                    Exclusion(field, getattr(arguments, field)).select(self._trained)
                except ValueError as error:
                    raise ConfigurationError(f"{path}: {one_line(error)}") from error
        norms = self.task_config.gradient_norms
        if clars_of(optimizer) is not None and norms.mode != "replica":
            try:
                check_supported(self._model_to_measure, registry_of(norms))
            except ValueError as error:
                raise ConfigurationError(one_line(error)) from error

    def build_inputs(self, params: Any, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """The host's data; for training with ConAdv also the next step's batch and the views it asks for."""
        return inputs.build(self.task_config, params, input_context, super().build_inputs, self._looks_ahead())

    def build_metrics(self, training: bool = True) -> list[tf_keras.metrics.Metric]:
        """The host's, which see the clean images, and those of the adversarial ones."""
        metrics = super().build_metrics(training)
        if training and self._adversary is not None:
            metrics += [StreamMean(name) for name in STREAM_METRICS]
        return metrics

    # No branch here or in the host's layers depends on a tensor's value: conversion would only slow tracing down.
    @tf.autograph.experimental.do_not_convert
    def train_step(
        self, inputs: tuple[Any, Any], model: tf_keras.Model, optimizer: Any, metrics: Sequence[Any] | None = None
    ) -> dict[str, tf.Tensor]:
        """One update; see the class."""
        upcoming = None
        if self._looks_ahead():
            inputs, upcoming = inputs
        views, labels = inputs
        targets = self._targets(labels)
        networks, images, weights = [model], [views], [1.0]
        conadv = self.task_config.conadv
        if self._adversary is not None:
            clean = views[:, 0] if conadv.augment is not None else views
            if upcoming is not None and conadv.augment is not None:
                upcoming = (upcoming[0][:, 0], upcoming[1])
            copies, coming = self._adversary.copies(clean, labels, upcoming, optimizer.iterations)
            self._adversary.remember(coming)
            images = [clean, copies, *([views[:, 1]] if conadv.augment is not None else [])]
            networks += [sibling.network for sibling in self._siblings]  # adversarial, augmented
            weights += [conadv.adversarial_weight, 1.0][: len(self._siblings)]

        passes = [self._run(*stream, targets, optimizer) for stream in zip(networks, images, weights, strict=True)]
        loss = tf.add_n([weight * one.loss for weight, one in zip(weights, passes, strict=True)])
        self._apply(passes, optimizer)
        self._update_metrics(metrics or [], targets, passes, images)
        return {self.loss: loss}

    def _run(self, network: Any, images: tf.Tensor, weight: float, targets: tf.Tensor, optimizer: Any) -> Pass:
        """Forward and backward pass of one stream."""
        strategy, size = tf.distribute.get_strategy(), self.task_config.micro_batch_size

        def loss(outputs: tf.Tensor, targets: tf.Tensor, regularisation: Any) -> tf.Tensor:
            return self.build_losses(model_outputs=outputs, labels=targets, aux_losses=regularisation)

        def scaled(loss: tf.Tensor) -> tf.Tensor:
            share = weight * loss / strategy.num_replicas_in_sync
            if isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
                share = optimizer.get_scaled_loss(share)
            return share

        is_main = not any(network is sibling.network for sibling in self._siblings)
        norms = self.task_config.gradient_norms if clars_of(optimizer) is not None else None
        if size is None:
            return run_pass(network, images, targets, loss, scaled, norms, is_main)
        if norms is not None and norms.norm_examples is not None:
            norms = norms.replace(norm_examples=-(-norms.norm_examples * size // images.shape[0]))

        def run(images: tf.Tensor, targets: tf.Tensor) -> Pass:
            return run_pass(network, images, targets, loss, scaled, norms, is_main)

        classes = self.task_config.model.num_classes
        return in_micro_batches(run, images, targets, network.trainable_variables, classes, size)

    def _apply(self, passes: Sequence[Pass], optimizer: Any) -> None:
        """Adds up the streams' gradients and norms and hands them to the optimizer."""
        variables, gradients, norms = added(passes)
        if isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
            gradients = optimizer.get_unscaled_gradients(gradients)
            norms = optimizer.get_unscaled_gradients(norms)
        pairs = list(zip(gradients, variables, strict=True))
        clars = clars_of(optimizer)
        if clars is None:
            optimizer.apply_gradients(pairs)
            return
        with clars.measured_gradient_norms(norms, variables):
            optimizer.apply_gradients(pairs)

    def _targets(self, labels: tf.Tensor) -> tf.Tensor:
        """What the host's losses compare with: classes, one-hot vectors, or 0 and 1 for binary cross-entropy."""
        config = self.task_config
        classes = config.model.num_classes
        if config.losses.one_hot and not config.train_data.is_multilabel:
            labels = tf.one_hot(labels, classes)
        if config.losses.use_binary_cross_entropy:
            mixup = config.train_data.mixup_and_cutmix
            if mixup is not None:  # the classes of mixed images are above what smoothing gives all classes
                labels = tf.where(labels < mixup.label_smoothing / classes + 1e-6, 0.0, 1.0)
            elif labels.shape.rank == 1:
                labels = tf.one_hot(labels, classes)
        return labels

    def _update_metrics(
        self, metrics: Sequence[Any], targets: tf.Tensor, passes: Sequence[Pass], images: Sequence[tf.Tensor]
    ) -> None:
        outputs = [tf.nn.softmax(p.outputs) if self.task_config.model.output_softmax else p.outputs for p in passes]
        self.process_metrics([m for m in metrics if not isinstance(m, StreamMean)], targets, outputs[0])
        if self._adversary is None:
            return
        classes = tf.argmax(targets, axis=-1) if targets.shape.rank == 2 else tf.cast(targets, tf.int64)
        hits = tf.cast(tf.argmax(outputs[1], axis=-1) == classes, tf.float32)
        perturbation = self._adversary.perturbation(images[0], images[1])
        values = (passes[0].loss, passes[1].loss, hits, perturbation, self._batch_norm_distance())
        for metric, value in zip(
            [m for m in metrics if isinstance(m, StreamMean)], values, strict=False
        ):  # none given: no metrics
            metric.update_state(value)

    def _batch_norm_distance(self) -> tf.Tensor:
        """How far the moving averages of this replica's clean and adversarial images have moved apart."""
        return distance(zip(*(batch_norms(b.network) for b in (self._clean, self._siblings[0])), strict=True))

    def _looks_ahead(self) -> bool:
        conadv = self.task_config.conadv
        return conadv.enabled and conadv.attack != "noise" and conadv.staleness > 0
