"""A model wrapper whose training step measures per-example gradient norms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core.rates import l2_norm
from tf_largebatch.norms import KERAS, Registry, check_supported, measure
from tf_largebatch.norms.intercept import intercept
from tf_largebatch.norms.shapes import Size, static_or_dynamic_size
from tf_largebatch.optimizers import CLARS
from tf_largebatch.optimizers.loss_scaling import agree_on_overflow
from tf_largebatch.training.micro_batches import StepResult, averaged_over_micro_batches, count
from tf_largebatch.training.noise_scale import NoiseScaleAverages, packed_mean_squares


@keras.saving.register_keras_serializable(package="tf_largebatch")
class LargeBatchModel(keras.Model):
    """Wraps a Keras model so that training measures the per-example gradient norms which CLARS divides by.

    For each trainable tensor `w_k` the training step measures

        s_k = (1/B) sum_i || grad_k f_i(w) ||_2

    within the one forward and backward pass that gives the gradient, and hands it to the optimizer
    (`tf_largebatch.CLARS`). With an optimizer that does not ask for the norms nothing is measured and the step is
    Keras's own. The wrapped model keeps its weights, names and checkpoints; `.model` gives it back. What exactly a
    norm is under batch normalization is said in `tf_largebatch.norms.per_example_gradient_norms`.

    Args:
        model: the model to train: Functional, Sequential, nested or subclassed.
        norm_examples: how many examples of each batch (of each replica's share of it) are measured; None for all,
            which is exact. The first `b` examples are taken, which is a random sample if the data are shuffled: their
            mean is an unbiased estimate of `s_k` with the relative error (std / mean) / sqrt(b), at about b/B of the
            price: in a large batch 128 to 512 examples err by a few percent. A last, smaller batch is
            measured whole.
        micro_batch_size: splits each batch into micro-batches of this many examples, worked off one after the other
            within the step; None for no split. Gradient and norms are those of the whole batch. Batch normalization
            takes its statistics from one micro-batch at a time, and updates its moving averages once for each. Needs
            losses with the reduction "sum_over_batch_size" (Keras's default).
        allow_generic: whether layers without a rule are measured by differentiating them alone, example by example,
            at two to three times their own cost, instead of being refused.
        name: the wrapper's name.

    Raises:
        ValueError: if `norm_examples` or `micro_batch_size` is not a positive integer or exceeds the batch; in `fit`,
            before the first step, if a layer with trainable variables has no per-example norm rule.

    Source: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576, equation of the layer-wise
    rate.
    """

    def __init__(
        self,
        model: keras.Model,
        norm_examples: int | None = None,
        micro_batch_size: int | None = None,
        allow_generic: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_positive_integer("norm_examples", norm_examples)
        _check_positive_integer("micro_batch_size", micro_batch_size)
        kwargs.setdefault("dtype", model.dtype_policy)
        # The wrapped model casts its inputs itself; the wrapper must not do so first.
        super().__init__(name=name or f"large_batch_{model.name}", autocast=False, **kwargs)
        self.model = model
        self.norm_examples = norm_examples
        self.micro_batch_size = micro_batch_size
        self.allow_generic = allow_generic
        self._noise_scale: NoiseScaleAverages | None = None
        if hasattr(model, "output_names"):
            self.output_names = list(model.output_names)
        if model.built:
            self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The wrapped model's output."""
        del training, mask  # the call context hands them on
        return self.model(inputs)

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, after checks that need no step to fail."""
        self._check_before_training(_known_batch_size(x, batch_size))
        return super().fit(x=x, y=y, batch_size=batch_size, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update; see the class."""
        if self.micro_batch_size is None and not self._measures() and not self._must_agree_on_overflow():
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._build_wrapped(x)
        return self._update((x, y, sample_weight))

    def _update(self, data: tuple[Any, ...]) -> dict[str, Any]:
        """One update on a batch whose first part is x, whole or in micro-batches."""
        batch_size = static_or_dynamic_size(keras.tree.flatten(data[0])[0], 0)
        if self.micro_batch_size is None:
            result = self._step(data, self.norm_examples)
        else:
            self._check_losses_are_means()
            examples = self._norm_examples_per_micro_batch(batch_size)
            result = averaged_over_micro_batches(
                lambda part: self._step(part, examples),
                data,
                self.trainable_variables,
                batch_size,
                self.micro_batch_size,
            )
        self._record_noise_scale(result, batch_size)
        self._apply(result)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(_undo_replica_share(result.loss), sample_weight=batch_size)
        return self.get_metrics_result()

    @property
    def noise_scale_averages(self) -> NoiseScaleAverages | None:
        """What the steps add to; see `record_noise_scale`."""
        return self._noise_scale

    def record_noise_scale(self, averages: NoiseScaleAverages | None) -> None:
        """Makes every step add to these averages; None ends it. `callbacks.GradientNoiseScale` calls this.

        Norms are then measured whatever the optimizer, and Keras traces the step anew.
        """
        self._noise_scale = averages
        self.train_function = None

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "norm_examples": self.norm_examples,
            "micro_batch_size": self.micro_batch_size,
            "allow_generic": self.allow_generic,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LargeBatchModel:
        """The inverse of `get_config`."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})

    def _build_wrapped(self, x: Any) -> None:
        """Builds a model that `fit` got unbuilt, under its own names, before its variables are listed."""
        if not all(layer.built for layer in self.model._flatten_layers()):
            self.model(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), x))

    def _step(self, data: tuple[Any, ...], examples: int | None) -> StepResult:
        """Forward and backward pass over a batch or micro-batch, and its update of the metrics."""
        x, y, sample_weight = data
        unscaled: list[tf.Tensor] = []

        def loss(y_pred: Any) -> tf.Tensor:
            unscaled.append(self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True))
            return self.optimizer.scale_loss(unscaled[0])

        y_pred, gradients, norms, mean_squares = self._differentiate(x, loss, examples)
        self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if not self._reads_norms():
            norms = self._replica_norms(gradients)
        return StepResult(tf.cast(unscaled[0], tf.float32), gradients, norms, mean_squares)

    def _differentiate(
        self,
        x: Any,
        loss: Callable[[Any], tf.Tensor],
        examples: int | None,
        replacements: Mapping[Any, Any] | None = None,
    ) -> tuple[Any, list[Any], list[Any], tf.Tensor | None]:
        """Output and gradients of one pass; per-example norms and mean squares if somebody reads them, else [], None.

        In the pass the replacements are called in place of the layers that they are given for.
        """
        variables = self.trainable_variables
        if self._measures():
            batch_size = static_or_dynamic_size(keras.tree.flatten(x)[0], 0)
            y_pred, measured = measure(
                self.model,
                lambda: self(x, training=True),
                loss,
                variables,
                batch_size,
                self._registry,
                examples,
                replacements,
            )
            mean_squares = None if self._noise_scale is None else packed_mean_squares(measured)
            return y_pred, measured.gradients, measured.norm_sums(), mean_squares
        with tf.GradientTape() as tape:
            with contextlib.ExitStack() as stack:
                for layer, replacement in (replacements or {}).items():
                    stack.enter_context(intercept(layer, replacement.call))
                y_pred = self(x, training=True)
            target = loss(y_pred)
        return y_pred, tape.gradient(target, [v.value for v in variables]), [], None

    def _replica_norms(self, gradients: list[Any]) -> list[Any]:
        """The norm of this micro-batch's gradient, for `gradient_norms="replica"`."""
        if self._clars() is None:
            return []
        return [None if g is None else tf.cast(l2_norm(tf.convert_to_tensor(g)), tf.float32) for g in gradients]

    def _record_noise_scale(self, result: StepResult, batch_size: Size) -> None:
        """Adds a batch to the averages, if anybody asked for them; before the update, which may change the scale."""
        if self._noise_scale is not None:
            if result.mean_squares is None:
                raise ValueError(
                    f"The gradient noise scale is not available for {type(self).__name__}, whose examples have several "
                    "gradients each: measure it with LargeBatchModel."
                )
            with tf.init_scope():  # of a model that this step has just built
                self._noise_scale.build(self.trainable_variables)
            unit = self.optimizer.scale_loss(tf.ones(())) / tf.distribute.get_strategy().num_replicas_in_sync
            self._noise_scale.update(result.mean_squares, result.gradients, batch_size, unit)

    def _apply(self, result: StepResult) -> None:
        """Hands gradients and norms to the optimizer."""
        variables = self.trainable_variables
        clars = self._clars()
        gradients, norms = result.gradients, result.norms
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It unscales the gradients itself, and knows nothing of the norms: a contribution that overflows where
            # the gradient does not must skip the step just the same.
            scale = self.optimizer.scale_loss(tf.ones(()))
            norms = [None if s is None else s / scale for s in norms]
            gradients = agree_on_overflow(gradients, norms)
        if clars is None:
            self.optimizer.apply(gradients, variables)
            return
        with clars.measured_gradient_norms(norms):
            self.optimizer.apply(gradients, variables)

    @property
    def _registry(self) -> Registry:
        return KERAS.allowing_generic() if self.allow_generic else KERAS

    def _clars(self) -> CLARS | None:
        """The optimizer if it is one that takes gradient norms, out of its loss-scaling wrapper."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, CLARS) else None

    def _must_agree_on_overflow(self) -> bool:
        """Whether Keras's own step would skip an overflow of the first replica alone."""
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        return several and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _measures(self) -> bool:
        """Whether anybody reads per-example norms: the optimizer or the noise scale."""
        return self._noise_scale is not None or self._reads_norms()

    def _reads_norms(self) -> bool:
        """Whether the optimizer reads per-example norms."""
        clars = self._clars()
        return clars is not None and clars.reads_per_example_norms

    def _norm_examples_per_micro_batch(self, batch_size: Size) -> int | None:
        if self.norm_examples is None or self.micro_batch_size is None:
            return self.norm_examples
        parts = count(batch_size, self.micro_batch_size)
        return -(-self.norm_examples // parts)

    def _check_before_training(self, batch_size: int | None) -> None:
        if batch_size is not None:
            for name in ("norm_examples", "micro_batch_size"):
                value = getattr(self, name)
                if value is not None and value > batch_size:
                    raise ValueError(
                        f"{name} must be at most the batch size {batch_size}, got {name}={value}: "
                        "lower it or pass None."
                    )
        if self.optimizer is not None and self.model.built and self._measures():
            check_supported(self.model, self._registry)

    def _check_losses_are_means(self) -> None:
        for loss in keras.tree.flatten(self.loss):
            reduction = getattr(loss, "reduction", "sum_over_batch_size")
            if reduction not in ("sum_over_batch_size", "mean"):
                raise ValueError(
                    f"micro_batch_size={self.micro_batch_size} needs losses that are means over the batch, got a loss "
                    f"with reduction={reduction!r}: use reduction='sum_over_batch_size' or micro_batch_size=None."
                )


def _check_positive_integer(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{name} must be a positive integer or None, got {name}={value!r}.")


def _known_batch_size(x: Any, batch_size: int | None) -> int | None:
    """The batch size of `fit`'s data where it can be told without drawing any."""
    if isinstance(x, tf.data.Dataset):
        leaves = keras.tree.flatten(x.element_spec)
        rank = getattr(leaves[0], "shape", tf.TensorShape(None)).rank
        return leaves[0].shape[0] if rank else None
    leaves = keras.tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return min(batch_size or 32, int(leaves[0].shape[0]))
    return None


def _undo_replica_share(loss: tf.Tensor) -> tf.Tensor:
    """Under tf.distribute Keras divides each replica's loss by their number; metrics show the undivided loss."""
    return loss * tf.distribute.get_strategy().num_replicas_in_sync
