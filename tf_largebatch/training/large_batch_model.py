"""A model wrapper whose training step measures per-example gradient norms."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Generator, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import require
from tf_largebatch.keras_internals import default_jit_compile
from tf_largebatch.norms import KERAS, Registry, check_supported
from tf_largebatch.norms.shapes import Size
from tf_largebatch.optimizers import CLARS
from tf_largebatch.training import delegation, loss_scaling
from tf_largebatch.training.loss_terms import MicroBatchLosses, spread_examples
from tf_largebatch.training.micro_batches import MicroBatches, batch_size_of, number_of_micro_batches
from tf_largebatch.training.noise_scale import NoiseScaleAverages
from tf_largebatch.training.step import Measuring, Pass, Stream, passes_over, run_pass
from tf_largebatch.training.trainer import (
    Trainer,
    in_strategy,
    number_of_replicas,
    outside_of_the_step,
    replica_may_be_empty,
)

# Read while the step is traced: a new value traces it anew.
_TRACED = ("norm_examples", "micro_batch_size", "allow_generic")


@keras.saving.register_keras_serializable(package="tf_largebatch")
class LargeBatchModel(Trainer, keras.Model):
    """Wraps a Keras model so that training measures the per-example gradient norms which CLARS divides by.

    For each trainable tensor `w_k` the training step measures

        s_k = (1/B) sum_i || grad_k f_i(w) ||_2

    within the one forward and backward pass that computes the gradient, and passes it to the optimizer
    (`tf_largebatch.CLARS`). With an optimizer that does not read the norms nothing is measured and the update is that
    of plain Keras. The wrapped model keeps its weights, names and checkpoints; `.model` returns it.
    `tf_largebatch.norms.per_example_gradient_norms` defines a norm under batch normalization.

    The wrapped model's own `compute_loss`, `compute_metrics`, `metrics`, `get_metrics_result`, `test_step` and
    `predict_step` are called, with the loss, metrics and optimizer that the wrapper was compiled with. A model with a
    `train_step` of its own is refused. `export` exports the wrapped model.

    Args:
        model: The model to train: Functional, Sequential, nested or subclassed.
        norm_examples: How many examples of each batch (of each replica's share of it) are measured; None for all,
            which is exact. The first `b` examples are taken, which are a random sample if the data are shuffled: their
            mean is an unbiased estimate of `s_k` with the relative error (std / mean) / sqrt(b), at about b/B of the
            cost: in a large batch 128 to 512 examples err by a few percent. A last, smaller batch is measured whole.
        micro_batch_size: Splits each batch into micro-batches of this many examples, which run one after the other
            within the step; None for no split. Gradient and norms are those of the whole batch. Batch normalization
            takes its statistics from one micro-batch at a time, and updates its moving averages once for each. Losses
            are weighted by what they divide by (masks, sample weights); losses that couple examples are refused.
        allow_generic: Whether layers without a rule are measured by differentiating them alone, example by example,
            at two to three times their own cost, instead of being refused.
        name: The wrapper's name.

    Raises:
        ValueError: If `norm_examples` or `micro_batch_size` is not a positive integer or exceeds the batch, or the
            model has a `train_step` of its own; in `fit`, before the first step, if a layer with trainable variables
            has no per-example norm rule.

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
        delegation.check_trainable_by_wrapper(model)
        kwargs.setdefault("dtype", model.dtype_policy)
        # The wrapped model casts its inputs itself; the wrapper must not do so first.
        super().__init__(name=name or f"large_batch_{model.name}", autocast=False, **kwargs)
        self.model = model
        self.norm_examples = norm_examples
        self.micro_batch_size = micro_batch_size
        self.allow_generic = allow_generic
        self._noise_scale: NoiseScaleAverages | None = None
        self._records_until_fit_ends = False
        self._micro_batch_losses = MicroBatchLosses(self)
        if hasattr(model, "output_names"):
            self.output_names = list(model.output_names)
        if model.built:
            self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks arguments that are set after the constructor, and has the step traced anew with them."""
        if name in ("norm_examples", "micro_batch_size"):
            _check_positive_integer(name, value)
        changes = name in _TRACED and name in vars(self) and getattr(self, name) != value
        super().__setattr__(name, value)
        if changes:
            self._trace_anew()

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The wrapped model's output."""
        del training  # the call context passes it on
        if mask is not None and "mask" in inspect.signature(self.model.call).parameters:
            return self.model(inputs, mask=mask)
        return self.model(inputs)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, with its arguments, after checks that need no step to fail."""
        arguments = delegation.fit_arguments(args, kwargs)
        x, y, sample_weight = (arguments[name] for name in ("x", "y", "sample_weight"))
        self._check_before_training(_known_batch_size(x, arguments["batch_size"]))
        if self.compiled and self.micro_batch_size is not None:
            if isinstance(x, Generator) and self._micro_batch_losses.needs_a_sample():
                first = next(x)
                args, kwargs = (), {**arguments, "x": _chained(first, x)}
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(first)
            self._check_losses(x, y, sample_weight)
        try:
            return super().fit(*args, **kwargs)
        finally:
            self.end_of_fit()

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, *args: Any, **kwargs: Any) -> Any:
        """One update, as `keras.Model.train_on_batch` makes it."""
        if self.compiled and self.micro_batch_size is not None and self._micro_batch_losses.needs_a_sample():
            self._check_losses(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, *args, **kwargs)

    def check_micro_batches(self, x: Any, y: Any, sample_weight: Any = None) -> None:
        """Finds out, from some examples, how the loss of a batch follows from those of its micro-batches.

        `fit` and `train_on_batch` call this. A loop of your own around `train_step` must, with `micro_batch_size` and a
        loss that is not Keras's own.

        Args:
            x: Inputs, nested arrays or tensors with 2 examples or more on axis 0.
            y: Targets.
            sample_weight: Weights of the examples, or None.

        Raises:
            ValueError: If a loss couples the examples, so that no weights of micro-batches give the batch's loss.
        """
        data = spread_examples((x, y, sample_weight))
        if int(batch_size_of(data[0])) < 2:
            return
        with in_strategy(self):
            self._build_wrapped(data[0])
            self._micro_batch_losses.check(*data)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Exports the wrapped model: `keras.Model.export` of `.model`."""
        return self.model.export(*args, **kwargs)

    def training_step(self, data: Any) -> dict[str, Any]:
        """One update, which reads and assigns variables; see the class. `train_step` is made of it on each backend."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._build_wrapped(x)
        return self._update([Stream(x)], y, sample_weight)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The compiled loss and the layers' losses, or the wrapped model's own `compute_loss`."""
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight, "training": training}
        if not delegation.overrides(self.model, "compute_loss"):
            return super().compute_loss(**arguments)
        return delegation.compute_loss(self.model, self, arguments)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates the metrics, by the wrapped model's own `compute_metrics` if it has one, and returns the logs."""
        if not delegation.overrides(self.model, "compute_metrics"):
            return super().compute_metrics(x, y, y_pred, sample_weight)
        with delegation.compiled_as(self.model, self) as model:
            return model.compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """The metrics' values by name."""
        if not delegation.overrides(self.model, "get_metrics_result"):
            return super().get_metrics_result()
        with delegation.compiled_as(self.model, self) as model:
            return model.get_metrics_result()

    @property
    def metrics(self) -> list[Any]:
        """The loss, the compiled metrics and the wrapped model's own ones."""
        if not hasattr(self, "model"):  # while the constructor runs
            return super().metrics
        with delegation.compiled_as(self.model, self) as model:
            return list(model.metrics)

    @property
    def noise_scale_averages(self) -> NoiseScaleAverages | None:
        """The averages that the steps update; see `record_noise_scale`."""
        return self._noise_scale

    def record_noise_scale(self, averages: NoiseScaleAverages | None, until_fit_ends: bool = False) -> None:
        """Makes every step update these averages; None ends it. `callbacks.GradientNoiseScale` calls this.

        Norms are then measured whatever the optimizer, and Keras traces the step anew.

        Args:
            averages: What to update, or None.
            until_fit_ends: Whether the end of the present `fit` ends it too, also where an error interrupts it.
        """
        self._noise_scale, self._records_until_fit_ends = averages, until_fit_ends
        if all(layer.built for layer in self.model._flatten_layers()):
            with in_strategy(self):
                self._build_untracked()
        self._trace_anew()

    def end_of_fit(self) -> None:
        """Ends what lasts until `fit` ends; `fit` and `distribute.fit.fit` call this however they end."""
        if self._noise_scale is not None and self._records_until_fit_ends:
            self.record_noise_scale(None)

    def _check_losses(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Checks the losses on some of the data given to `fit`; reads a batch of a dataset only if it must."""
        if _is_dataset(x) or isinstance(x, keras.utils.PyDataset):
            if not self._micro_batch_losses.needs_a_sample():
                return
            batch = next(iter(x)) if _is_dataset(x) else x[0]
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
        if all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
            self.check_micro_batches(x, y, sample_weight)

    def _trace_anew(self) -> None:
        """Has the next step traced anew, also in the middle of a `fit`."""
        if getattr(self, "train_function", None) is not None:
            self.make_train_function(force=True)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "norm_examples": self.norm_examples,
            "micro_batch_size": self.micro_batch_size,
            "allow_generic": self.allow_generic,
            "name": self.name,
        }

    def get_compile_config(self) -> dict[str, Any]:
        """Arguments of `compile`. The default of `jit_compile` stays "auto", so that another backend has its own."""
        config = super().get_compile_config()
        if config and not self.run_eagerly and config.get("jit_compile") == default_jit_compile(self):
            config["jit_compile"] = "auto"
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LargeBatchModel:
        """The inverse of `get_config`."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})

    def _build_wrapped(self, x: Any) -> None:
        """Builds a model that `fit` got unbuilt, under its own names, before its variables are listed."""
        if not all(layer.built for layer in self.model._flatten_layers()):
            self.model(
                keras.tree.map_structure(
                    lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x
                )
            )

    def _update(self, streams: Sequence[Stream], y: Any, sample_weight: Any) -> dict[str, Any]:
        """One update on the streams of a batch; returns the logs."""
        batch_size = batch_size_of(streams[0].inputs)
        size = self._size_of_micro_batches(batch_size)
        totals = None
        if self.micro_batch_size is not None:
            assert size is not None  # it is that of the micro-batches
            totals = self._micro_batch_losses.totals(
                MicroBatches((streams[0].inputs, y, sample_weight), batch_size, size)
            )
        measuring = self._measuring(batch_size, size)
        variables = self.trainable_variables
        logs: dict[str, Any] = {}

        def run(stream: Stream, x: Any, targets: tuple[Any, Any]) -> Pass:
            y, sample_weight = targets
            is_first = stream is streams[0]

            def loss(y_pred: Any) -> Any:
                with contextlib.ExitStack() as stack:
                    factor = 1.0
                    if not is_first:
                        stack.enter_context(self._without_weight_regularizers())
                    if self.micro_batch_size is not None:
                        share = ops.cast(batch_size, "float32") / ops.cast(batch_size_of(x), "float32")
                        self._micro_batch_losses.check_additional()
                        part = self._micro_batch_losses.of_part(y, y_pred, sample_weight, share, totals)
                        factor = stack.enter_context(part)
                    value = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
                return value if isinstance(factor, float) and factor == 1.0 else value * factor

            def scale(loss: Any) -> Any:
                return self.optimizer.scale_loss(loss if is_first else ops.cast(stream.weight, loss.dtype) * loss)

            one = run_pass(
                lambda: self(x, training=True),
                loss,
                scale,
                variables,
                batch_size_of(x),
                measuring,
                stream.replacements,
            )
            found = self._update_metrics(stream, x, y, one.outputs[0], sample_weight)
            if size is None:
                logs.update(found)
            return one

        replica_norms = self._clars() is not None and not self._reads_norms()
        state = [*self.non_trainable_variables, *self.metrics_variables]
        result = passes_over(streams, (y, sample_weight), run, variables, batch_size, size, replica_norms, state=state)
        self._record_noise_scale(result, batch_size)
        self._update_losses(streams, result, batch_size)
        self._apply(result)
        return {**logs, **self.get_metrics_result()}

    def _without_weight_regularizers(self) -> contextlib.AbstractContextManager[None]:
        return delegation.without_weight_regularizers(self, self.model)

    def _update_metrics(self, stream: Stream, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Updates the metrics by what a stream's pass over a batch or micro-batch gave; returns logs."""
        del stream  # the only one
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _update_losses(self, streams: Sequence[Stream], result: Pass, batch_size: Size) -> None:
        """Updates the loss that `fit` shows."""
        losses = _undo_replica_share(result.losses)
        weights = [ops.cast(stream.weight, "float32") for stream in streams[1:]]
        total = ops.sum(ops.stack([ops.ones((), "float32"), *weights]) * losses) if weights else losses[0]
        self._loss_tracker.update_state(total, sample_weight=batch_size)

    def _measuring(self, batch_size: Size, size: Size | None) -> Measuring | None:
        """How the passes measure norms; None if neither the optimizer nor the noise scale reads them."""
        if self._noise_scale is None and not self._reads_norms():
            return None
        examples = self.norm_examples
        if examples is not None and self.micro_batch_size is not None:
            examples = -(-examples // number_of_micro_batches(batch_size, self.micro_batch_size))
        return Measuring(self.model, self._registry, examples, self._noise_scale is not None)

    def _size_of_micro_batches(self, batch_size: Size) -> Size | None:
        """How many examples run at a time; None for all, without a loop."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        # The loop does not run on a replica without examples, which adds nothing then.
        return ops.maximum(batch_size, 1) if self._may_be_empty(batch_size) else None

    def _may_be_empty(self, batch_size: Size) -> bool:
        """Whether a last, small batch may leave this replica without examples, which many kernels cannot do with."""
        return replica_may_be_empty(batch_size) and not _meets_other_replicas(self.model)

    def _record_noise_scale(self, result: Pass, batch_size: Size) -> None:
        """Adds a batch to the averages; before the update, which may change the loss scale."""
        if self._noise_scale is not None:
            if result.mean_squares is None:
                raise ValueError(
                    f"The gradient noise scale is not available for {type(self).__name__}, whose examples have several "
                    "gradients each: measure it with LargeBatchModel."
                )
            with outside_of_the_step():  # of a model that this step has just built
                self._build_untracked()
            unit = self._loss_scale() / number_of_replicas()
            self._noise_scale.update(result.mean_squares, result.gradients, batch_size, unit)

    def _apply(self, result: Pass) -> None:
        """Passes gradients and norms to the optimizer."""
        variables, gradients = result.variables, result.gradients
        clars = self._clars()
        norms = None if clars is None else result.norms
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It unscales the gradients itself and knows nothing of the norms. A contribution that overflows where the
            # gradient does not must skip the step all the same.
            if norms is not None:
                norms = dataclasses.replace(norms, values=norms.values / self._loss_scale())
            gradients = loss_scaling.agree_on_overflow(gradients, norms)
        if clars is None or norms is None:
            loss_scaling.apply(self.optimizer, gradients, variables)
            return
        with clars.measured_gradient_norms(norms, variables):
            loss_scaling.apply(self.optimizer, gradients, variables)

    def _loss_scale(self) -> Any:
        """The factor by which the optimizer has the loss multiplied."""
        return self.optimizer.scale_loss(ops.ones((), "float32"))

    def _untracked_variables(self) -> list[Any]:
        """What steps assign and Keras does not know of, since it is not saved with the model."""
        averages = getattr(self, "_noise_scale", None)
        return [] if averages is None else averages.variables

    def _build_untracked(self) -> None:
        """Creates the variables of `_untracked_variables`, once the model has its own."""
        if self._noise_scale is not None:
            self._noise_scale.build(self.trainable_variables)

    @property
    def _registry(self) -> Registry:
        return KERAS.allowing_generic() if self.allow_generic else KERAS

    def _clars(self) -> CLARS | None:
        """The optimizer if it is one that takes gradient norms, out of its loss-scaling wrapper."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, CLARS) else None

    def _reads_norms(self) -> bool:
        """Whether the optimizer reads per-example norms."""
        clars = self._clars()
        return clars is not None and clars.reads_per_example_norms

    def _check_before_training(self, batch_size: int | None) -> None:
        """Checks what can be checked without data. A model that is not compiled is left to Keras's own message."""
        if not self.compiled:
            return
        for name in ("norm_examples", "micro_batch_size"):
            value = getattr(self, name)
            fits = batch_size is None or value is None or value <= batch_size
            require(fits, name, value, f"at most the batch size {batch_size}", "lower it or pass None")
        with in_strategy(self):
            alone = self.micro_batch_size is None or number_of_replicas() == 1
        rule = "None with synchronized batch normalization on several replicas, which cannot meet inside a loop"
        require(
            alone or not _meets_other_replicas(self.model),
            "micro_batch_size",
            self.micro_batch_size,
            rule,
            "pass BatchNormalization(synchronized=False) or micro_batch_size=None",
        )
        if self.model.built and (self._noise_scale is not None or self._reads_norms()):
            check_supported(self.model, self._registry)


def _check_positive_integer(name: str, value: Any) -> None:
    valid = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
    require(valid, name, value, "a positive integer or None")


def _meets_other_replicas(model: keras.Model) -> bool:
    """Whether a layer communicates in the middle of the forward pass."""
    return any(getattr(layer, "synchronized", False) for layer in model._flatten_layers())


def _chained(first: Any, rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    yield first
    yield from rest


def _known_batch_size(x: Any, batch_size: int | None) -> int | None:
    """The batch size of `fit`'s data where it is known without drawing a batch."""
    if _is_dataset(x):
        shape = getattr(keras.tree.flatten(x.element_spec)[0], "shape", None)
        return shape[0] if shape is not None and shape.rank else None
    leaves = keras.tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return min(batch_size or 32, int(leaves[0].shape[0]))
    return None


def _is_dataset(x: Any) -> bool:
    """Whether data for `fit` are a tf.data.Dataset."""
    return hasattr(x, "element_spec")


def _undo_replica_share(loss: Any) -> Any:
    """Under tf.distribute Keras divides each replica's loss by their number; metrics show the undivided loss."""
    return loss * number_of_replicas()
