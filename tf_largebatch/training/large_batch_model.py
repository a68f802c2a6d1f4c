"""A model wrapper whose training step measures per-example gradient norms."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import keras

from tf_largebatch.check import flag, require
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.norms import check_supported
from tf_largebatch.training import delegation, fit_data
from tf_largebatch.training.accumulation import Accumulation
from tf_largebatch.training.automatic_size import AUTO, AutomaticSize
from tf_largebatch.training.loss_kind import spread_examples
from tf_largebatch.training.loss_terms import MicroBatchLosses
from tf_largebatch.training.micro_batches import batch_size_of
from tf_largebatch.training.noise_scale import NoiseScaleAverages
from tf_largebatch.training.step import Stream
from tf_largebatch.training.trainer import in_strategy, number_of_replicas
from tf_largebatch.training.updating_wrapper import UpdatingWrapper, meets_other_replicas

# Read while the step is traced: a new value traces it anew.
_TRACED = ("norm_examples", "micro_batch_size", "allow_generic")


@keras.saving.register_keras_serializable(package="tf_largebatch")
class LargeBatchModel(UpdatingWrapper):
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
            within the step; None for no split; "auto" for the largest that fits into memory, found before the first
            update, and no split if the whole batch fits. `evaluate` runs as many examples at a time. Gradient and norms
            are those of the whole batch. Batch normalization takes its statistics from one micro-batch at a time, and
            updates its moving averages once for each. Losses are weighted by what they divide by (masks, sample
            weights); losses that couple examples are refused.
        allow_generic: Whether layers without a rule are measured by differentiating them alone, example by example,
            at two to three times their own cost, instead of being refused.
        name: The wrapper's name.

    Raises:
        ValueError: If `norm_examples` or `micro_batch_size` is not a positive integer or exceeds the batch, or the
            model has a `train_step` of its own; in `fit`, before the first step, if a layer with trainable variables
            has no per-example norm rule.
        OutOfMemory: In `fit`, if the step does not fit into memory; it says which `micro_batch_size` would.

    Source: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", arXiv 2002.01576, equation of the layer-wise
    rate.
    """

    def __init__(
        self,
        model: keras.Model,
        norm_examples: int | None = None,
        micro_batch_size: int | str | None = None,
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
        self.automatic_size = AutomaticSize()
        object.__setattr__(self, "_splitting", None)
        self.micro_batch_size = micro_batch_size
        self.allow_generic = flag("allow_generic", allow_generic)
        self._noise_scale: NoiseScaleAverages | None = None
        self._accumulation: Accumulation | None = None
        self._records_until_fit_ends = False
        self._micro_batch_losses = MicroBatchLosses(self)
        if hasattr(model, "output_names"):
            self.output_names = list(model.output_names)
        if model.built:
            self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks arguments that are set after the constructor, and has the step traced anew with them."""
        if name in ("norm_examples", "micro_batch_size"):
            _check_positive_integer(name, value, or_auto=name == "micro_batch_size")
        changes = name in _TRACED and name in vars(self) and getattr(self, name) != value
        super().__setattr__(name, value)
        if changes and name == "micro_batch_size":
            self.automatic_size = AutomaticSize()
        if changes:
            self._trace_anew()

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, with its arguments, after checks that need no step to fail."""
        arguments = delegation.fit_arguments(args, kwargs)
        x, y, sample_weight = (arguments[name] for name in ("x", "y", "sample_weight"))
        self._check_before_training(fit_data.known_batch_size(x, arguments["batch_size"]))
        if self.compiled and self.micro_batch_size is not None:
            if isinstance(x, Generator) and self._micro_batch_losses.needs_a_sample():
                first = next(x)
                args, kwargs = (), {**arguments, "x": fit_data.chained(first, x)}
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(first)
            self._check_losses(x, y, sample_weight)
        try:
            return super().fit(*args, **kwargs)
        finally:
            self.end_of_fit()

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Makes one update, as `keras.Model.train_on_batch` makes it."""
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

    def training_step(self, data: Any) -> dict[str, Any]:
        """Makes one update, which reads and assigns variables.

        See the class. `train_step` is made of it on each backend.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._build_wrapped(x)
        return self._update([Stream(x)], y, sample_weight)

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
        if all(layer.built for layer in layers_within(self.model)):
            with in_strategy(self):
                self._build_untracked()
        self._trace_anew()

    @property
    def accumulation(self) -> Accumulation | None:
        """The group of batches that the next update is made of; see `accumulate`."""
        return self._accumulation

    def accumulate(self, accumulation: Accumulation | None, until_fit_ends: bool = False) -> None:
        """Makes one update of several batches; None ends it. `callbacks.GrowBatchSize` calls this.

        Keras traces the step anew.

        Args:
            accumulation: The group of batches, which says how many they are, or None.
            until_fit_ends: Whether the end of the present `fit` ends it too, also where an error interrupts it.

        Raises:
            ValueError: On several replicas of `tf.distribute`, and with an optimizer that accumulates gradients itself.
        """
        if accumulation is not None:
            self._check_accumulates()
        self._accumulation, self._accumulates_until_fit_ends = accumulation, until_fit_ends
        if all(layer.built for layer in layers_within(self.model)):
            self._build_untracked()
        self._trace_anew()

    def state_beside_variables(self) -> dict[str, list[Any]]:
        """What a checkpoint must hold for training to go on, beside the variables of the model and its optimizer."""
        found: dict[str, list[Any]] = {}
        if self._noise_scale is not None:
            found["noise_scale"] = list(self._noise_scale.variables)
        if self._accumulation is not None:
            found["accumulation"] = list(self._accumulation.variables)
        if self.micro_batch_size == AUTO:
            found["micro_batch_size"] = [self.automatic_size]
        return found

    def end_of_fit(self) -> None:
        """Ends what lasts until `fit` ends; `fit` and `distribute.fit.fit` call this however they end."""
        if self._noise_scale is not None and self._records_until_fit_ends:
            self.record_noise_scale(None)
        if self._accumulation is not None and self._accumulates_until_fit_ends:
            self.accumulate(None)

    def _check_accumulates(self) -> None:
        with in_strategy(self):
            replicas = number_of_replicas()
        require(
            replicas == 1,
            "strategy",
            f"{replicas} replicas",
            "left out with updates of several batches: Keras cannot make an update under a condition on several "
            "replicas of tf.distribute",
            "train on one device, or in Keras on JAX with keras.distribution",
        )
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        steps = getattr(optimizer, "gradient_accumulation_steps", None)
        remedy = "updates of several batches accumulate gradients already"
        require(not steps, "gradient_accumulation_steps", steps, "None with GrowBatchSize", remedy)
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            reduction = getattr(loss, "reduction", None)
            rule = "'sum_over_batch_size' or another mean with updates of several batches, which average theirs"
            require(reduction != "sum", "reduction", reduction, rule)

    def _check_losses(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Checks the losses on some of the data given to `fit`; reads a batch of a dataset only if it must."""
        if fit_data.is_dataset(x) or isinstance(x, keras.utils.PyDataset):
            if not self._micro_batch_losses.needs_a_sample():
                return
            batch = next(iter(x)) if fit_data.is_dataset(x) else x[0]
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
        if not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
            return
        try:
            self.check_micro_batches(x, y, sample_weight)
        except ValueError as error:
            if self.micro_batch_size != AUTO:
                raise
            self.automatic_size.refusal = error  # for the case that the batch must be split

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
        """Makes the object that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})

    def _check_before_training(self, batch_size: int | None) -> None:
        """Checks what can be checked without data. A model that is not compiled is left to Keras's own message."""
        if not self.compiled:
            return
        for name in ("norm_examples", "micro_batch_size"):
            value = getattr(self, name)
            fits = batch_size is None or value in (None, AUTO) or value <= batch_size
            require(fits, name, value, f"at most the batch size {batch_size}", "lower it or pass None")
        with in_strategy(self):
            alone = self.micro_batch_size in (None, AUTO) or number_of_replicas() == 1
        rule = "None with synchronized batch normalization on several replicas, which cannot meet inside a loop"
        require(
            alone or not meets_other_replicas(self.model),
            "micro_batch_size",
            self.micro_batch_size,
            rule,
            "pass BatchNormalization(synchronized=False) or micro_batch_size=None",
        )
        if self.model.built and (self._noise_scale is not None or self._reads_norms()):
            check_supported(self.model, self._registry)


def _check_positive_integer(name: str, value: Any, or_auto: bool) -> None:
    is_auto = or_auto and isinstance(value, str) and value == AUTO
    valid = value is None or is_auto or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
    require(valid, name, value, f"a positive integer{', ' + repr(AUTO) if or_auto else ''} or None")
