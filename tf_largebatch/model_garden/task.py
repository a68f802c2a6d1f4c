"""Model Garden's image classification with measured gradient norms and concurrent adversarial learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.vision.tasks import image_classification as model_garden_task

from tf_largebatch.conadv.auxiliary_batch_norm import distance
from tf_largebatch.keras_internals import without_autocast
from tf_largebatch.model_garden import configs, inputs
from tf_largebatch.model_garden.adversary import Adversary, needs_next_batch
from tf_largebatch.model_garden.measuring import check_optimizer, measuring_of
from tf_largebatch.model_garden.rebuildable import RebuildableNetwork, batch_norms
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line
from tf_largebatch.tf_keras.keras_internals import save_with_optimizer
from tf_largebatch.tf_keras.optimizers import clars_of
from tf_largebatch.training.micro_batches import batch_size_of
from tf_largebatch.training.step import Pass, Stream, passes_over, run_pass

# Logged beside Model Garden's metrics with ConAdv, as means over a loop's steps. The perturbation is in units of 1/255;
# bn_distance is how far the adversarial batch norms' statistics are from the clean ones'.
STREAM_METRICS = ("clean_loss", "adversarial_loss", "adversarial_accuracy", "perturbation", "bn_distance")


class StreamMean(tf_keras.metrics.Mean):
    """A mean over training steps of a quantity that Model Garden does not compute."""


@task_factory.register_task_cls(configs.LargeBatchTask)
class LargeBatchTask(model_garden_task.ImageClassificationTask):
    """Image classification whose training step measures the norms that CLARS asks for and runs ConAdv.

    * With the optimizer `clars` each step measures `s_k = (1/B) sum_i ||grad_k f_i||` as `task.gradient_norms` says and
      hands it to the optimizer. Other optimizers get plain gradients.
    * With `task.conadv.enabled` each step trains on the clean images through the model, on their adversarial images
      through a network with auxiliary batch norms, and with `augment` on a further view through a third network:

          loss = L(clean) + adversarial_weight * L(adversarial) + L(augmented)

      each L a mean over the batch. The networks share all variables but the batch norms'. Evaluation, moving average
      (`ema`) and export use the model only. The auxiliary batch norms and the weights of past steps are saved in
      checkpoints beside the optimizer.

    Sources: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576; Liu, Chen, Cheng, Hsieh,
    You, "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221, algorithm 1.
    """

    def __init__(self, params: configs.LargeBatchTask, logging_dir: str | None = None, name: str | None = None) -> None:
        super().__init__(params, logging_dir=logging_dir, name=name)
        self._clean: RebuildableNetwork | None = None
        self._auxiliary: list[RebuildableNetwork] = []
        self._adversary: Adversary | None = None

    def build_model(self) -> tf_keras.Model:
        """Builds Model Garden's model, and with ConAdv the networks of the other streams, which are no part of it.

        Raises:
            ConfigurationError: If the configuration of the model cannot be built.
        """
        task = self.task_config
        try:
            clean = self._clean = RebuildableNetwork(super().build_model)
        except (LookupError, TypeError, ValueError) as error:
            backbone = task.model.backbone.type
            raise ConfigurationError(f"task.model cannot be built with {backbone}: {one_line(error)}") from error
        if task.conadv.enabled:
            streams = 1 if task.conadv.augment is None else 2
            self._auxiliary = [clean.with_auxiliary_batch_norms() for _ in range(streams)]
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self._adversary = Adversary(
                task.conadv,
                self._auxiliary[0],
                task.model.num_classes,
                (task.train_data.global_batch_size // replicas, *task.model.input_size),
                task.train_data.dtype,
                task.micro_batch_size,
            )
        return clean.network

    def initialize(self, model: tf_keras.Model) -> None:
        """Loads a pretrained checkpoint if there is one; ConAdv then starts from its weights."""
        super().initialize(model)
        for auxiliary in self._auxiliary:
            for mine, original in zip(auxiliary.network.variables, model.variables, strict=True):
                if mine is not original:
                    mine.assign(original)
        if self._adversary is not None:
            self._adversary.reset()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Creates Model Garden's optimizer; ConAdv's state is saved with it, since an exported model must not have it.

        Raises:
            ConfigurationError: If its patterns match no variable or its norms cannot be measured.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._clean is not None:
            config = args[0] if args else kwargs["optimizer_config"]
            check_optimizer(optimizer, config, self.task_config.gradient_norms, self._clean.network)
        if self._adversary is not None:
            state = tf.Module(name="conadv")
            state.batch_norms = [auxiliary.own for auxiliary in self._auxiliary]
            state.snapshots, state.age = self._adversary.snapshots, self._adversary.age
            save_with_optimizer(optimizer, state, "conadv")
            optimizer.iterations  # noqa: B018  (creates the counter, which the attack's seeds read)
        return optimizer

    def build_inputs(self, params: Any, input_context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        """Builds Model Garden's data set; for ConAdv's training with the next step's batch and the views it needs."""
        with_next = needs_next_batch(self.task_config.conadv)
        return inputs.build(self.task_config, params, input_context, super().build_inputs, with_next)

    def build_metrics(self, training: bool = True) -> list[tf_keras.metrics.Metric]:
        """Builds Model Garden's metrics, which see the clean images, and those of the adversarial ones."""
        metrics = super().build_metrics(training)
        if training and self._adversary is not None:
            metrics += [StreamMean(name) for name in STREAM_METRICS]
        return metrics

    # No branch here or in Model Garden's layers depends on a tensor's value: conversion would only slow tracing down.
    @tf.autograph.experimental.do_not_convert
    def train_step(
        self, inputs: tuple[Any, Any], model: tf_keras.Model, optimizer: Any, metrics: Sequence[Any] | None = None
    ) -> dict[str, tf.Tensor]:
        """Makes one update; see the class."""
        streams, labels = self._streams(inputs, model, optimizer)
        targets = self._targets(labels)
        batch_size, micro_batch_size = batch_size_of(labels), self.task_config.micro_batch_size
        norms = self.task_config.gradient_norms if clars_of(optimizer) is not None else None
        replicas = tf.distribute.get_strategy().num_replicas_in_sync

        def run(stream: Stream, images: tf.Tensor, targets: tf.Tensor) -> Pass:
            network = stream.network

            def forward() -> tf.Tensor:
                return tf.cast(network(images, training=True), tf.float32)

            def loss(outputs: tf.Tensor) -> tf.Tensor:
                # The weights' regularization counts once.
                regularization = network.losses if network is model else None
                return self.build_losses(model_outputs=outputs, labels=targets, aux_losses=regularization)

            def scale(loss: tf.Tensor) -> tf.Tensor:
                share = stream.weight * loss / replicas
                return optimizer.get_scaled_loss(share) if _scales_loss(optimizer) else share

            exact = norms is not None and norms.mode != "replica"
            measuring = measuring_of(norms, network, batch_size, micro_batch_size) if exact else None
            return run_pass(forward, loss, scale, network.trainable_variables, batch_size_of(images), measuring)

        outputs = tf.TensorSpec([*labels.shape[:1], self.task_config.model.num_classes], tf.float32)
        total = passes_over(
            streams,
            targets,
            run,
            self._trainable_variables(streams),
            batch_size,
            micro_batch_size,
            replica_norms=norms is not None and norms.mode == "replica",
            output_specs=[outputs for _ in streams],
            identity=_identity,
        )
        _apply(total, optimizer)
        self._update_metrics(metrics or [], targets, total, streams)
        return {self.loss: tf.add_n([stream.weight * total.losses[i] for i, stream in enumerate(streams)])}

    def _streams(self, inputs: Any, model: tf_keras.Model, optimizer: Any) -> tuple[list[Stream], tf.Tensor]:
        """Returns the views of this step's batch and their networks, clean, adversarial, augmented; and the labels."""
        conadv, upcoming = self.task_config.conadv, None
        if needs_next_batch(conadv):
            inputs, upcoming = inputs
        images, labels = inputs
        if self._adversary is None:
            return [Stream(images, "clean", network=model)], labels
        networks = [auxiliary.network for auxiliary in self._auxiliary]
        clean, further = images, []
        if conadv.augment is not None:
            clean, further = images[:, 0], [Stream(images[:, 1], "augmented", network=networks[1])]
            upcoming = None if upcoming is None else (upcoming[0][:, 0], upcoming[1])
        adversarial, coming = self._adversary.images(clean, labels, upcoming, optimizer.iterations)
        self._adversary.push(coming)
        return [
            Stream(clean, "clean", network=model),
            Stream(adversarial, "adversarial", conadv.adversarial_weight, networks[0]),
            *further,
        ], labels

    def _trainable_variables(self, streams: Sequence[Stream]) -> list[Any]:
        """Returns the variables of all streams' networks, each once."""
        variables = [variable for stream in streams for variable in stream.network.trainable_variables]
        return list({_identity(variable): variable for variable in reversed(variables)}.values())[::-1]

    def _targets(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns what Model Garden's losses compare with.

        These are classes, one-hot vectors, or 0 and 1 for binary cross-entropy.
        """
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
        self, metrics: Sequence[Any], targets: tf.Tensor, total: Pass, streams: Sequence[Stream]
    ) -> None:
        outputs = [tf.nn.softmax(o) if self.task_config.model.output_softmax else o for o in total.outputs]
        self.process_metrics([m for m in metrics if not isinstance(m, StreamMean)], targets, outputs[0])
        if self._adversary is None or self._clean is None:
            return
        classes = tf.argmax(targets, axis=-1) if targets.shape.rank == 2 else tf.cast(targets, tf.int64)
        hits = tf.cast(tf.argmax(outputs[1], axis=-1) == classes, tf.float32)
        perturbation = self._adversary.perturbation(streams[1].inputs, streams[0].inputs)
        values = (total.losses[0], total.losses[1], hits, perturbation, _distance(self._clean, self._auxiliary[0]))
        of_streams = [m for m in metrics if isinstance(m, StreamMean)]
        for metric, value in zip(of_streams, values, strict=False):  # none if no metrics were given
            metric.update_state(value)


def _apply(total: Pass, optimizer: Any) -> None:
    """Hands gradients and norms to the optimizer."""
    gradients, norms = total.gradients, total.norms
    if _scales_loss(optimizer):
        gradients = optimizer.get_unscaled_gradients(gradients)
        if norms is not None:
            norms = dataclasses.replace(norms, values=optimizer.get_unscaled_gradients([norms.values])[0])
    pairs = list(zip(gradients, total.variables, strict=True))
    clars = clars_of(optimizer)
    if clars is None or norms is None:
        optimizer.apply_gradients(pairs)
        return
    with clars.measured_gradient_norms(norms.unpack(), total.variables):
        optimizer.apply_gradients(pairs)


def _distance(clean: RebuildableNetwork, auxiliary: RebuildableNetwork) -> tf.Tensor:
    """Returns how far the moving averages of this replica's clean and adversarial images have moved apart."""
    return distance(zip(batch_norms(clean.network), batch_norms(auxiliary.network), strict=True))


def _scales_loss(optimizer: Any) -> bool:
    return isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer)


def _identity(variable: Any) -> int:
    """Returns the same for a variable and the wrappers in which mixed precision puts it, anew in each network."""
    return id(without_autocast(variable))
