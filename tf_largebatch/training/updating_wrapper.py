"""One update of a wrapped model: the passes over a batch, the metrics, the noise scale, and the optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.keras_internals import layers_within, loss_tracker, without_loss_metrics, without_weight_regularizers
from tf_largebatch.norms import KERAS, Registry
from tf_largebatch.norms.shapes import Size
from tf_largebatch.optimizers import CLARS
from tf_largebatch.training import loss_scaling
from tf_largebatch.training.accumulation import Accumulation
from tf_largebatch.training.automatic_size import AUTO, AutomaticSize
from tf_largebatch.training.condition import do_if
from tf_largebatch.training.evaluation import Outputs
from tf_largebatch.training.loss_terms import MicroBatchLosses
from tf_largebatch.training.micro_batches import MicroBatches, batch_size_of, number_of_micro_batches
from tf_largebatch.training.noise_scale import NoiseScaleAverages
from tf_largebatch.training.step import Measuring, Pass, Stream, passes_over, run_pass
from tf_largebatch.training.trainer import (
    build_optimizer,
    number_of_replicas,
    outside_of_the_step,
    replica_may_be_empty,
)
from tf_largebatch.training.wrapper import Wrapper


class UpdatingWrapper(Wrapper):
    """Makes one update on the streams of a batch.

    A subclass sets the attributes, and may override `_update_metrics` and `_update_losses`.
    """

    norm_examples: int | None
    micro_batch_size: int | str | None
    allow_generic: bool
    automatic_size: AutomaticSize
    _splitting: Any
    _noise_scale: NoiseScaleAverages | None
    _accumulation: Accumulation | None
    _micro_batch_losses: MicroBatchLosses

    @property
    def examples_at_a_time(self) -> int | None:
        """How many examples of a batch run at a time: `micro_batch_size`, or what "auto" has chosen; None for all."""
        if self._splitting is not None:
            return self._splitting
        return self.automatic_size.size if self.micro_batch_size == AUTO else self.micro_batch_size  # type: ignore[return-value]

    @contextlib.contextmanager
    def splitting(self, size: int) -> Iterator[None]:
        """Within it steps that are traced split batches into micro-batches of this size."""
        object.__setattr__(self, "_splitting", size)
        try:
            yield
        finally:
            object.__setattr__(self, "_splitting", None)

    def outputs_in_micro_batches(self, data: Any) -> Outputs | None:
        """Returns what computes a batch's outputs for `evaluate`, as many examples at a time as in training.

        Args:
            data: Inputs, targets and weights.

        Returns:
            None where the whole batch is to be evaluated at a time.
        """
        size = self.examples_at_a_time or (self.automatic_size.fits if self.micro_batch_size == AUTO else 0)
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        batch_size = batch_size_of(x)
        if not size or (isinstance(batch_size, int) and batch_size <= size) or replica_may_be_empty(batch_size):
            return None
        outputs = Outputs(self.model, x, size)
        return None if outputs.add_losses else outputs

    def evaluation_step(self, data: Any, outputs: Outputs) -> dict[str, Any]:
        """Evaluates one batch in micro-batches: loss and metrics are those of the whole batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = outputs.of_batch(x)
        loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)
        loss_tracker(self).update_state(_undo_replica_share(loss), sample_weight=batch_size_of(x))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _update(self, streams: Sequence[Stream], y: Any, sample_weight: Any) -> dict[str, Any]:
        """Makes one update on the streams of a batch; returns the logs."""
        build_optimizer(self)
        batch_size = batch_size_of(streams[0].inputs)
        size = self._size_of_micro_batches(batch_size)
        totals = None
        splits = self.examples_at_a_time is not None
        if splits:
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
                    if splits:
                        share = ops.cast(batch_size, "float32") / ops.cast(batch_size_of(x), "float32")
                        self._micro_batch_losses.check_additional()
                        part = self._micro_batch_losses.of_part(y, y_pred, sample_weight, share, totals, is_first)
                        factor = stack.enter_context(part)
                    elif not is_first:
                        stack.enter_context(without_loss_metrics(self))
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
        self._update_losses(streams, result, batch_size)
        if self._accumulation is None:
            self._finish(result, batch_size)
        else:
            self._finish_if_due(self._accumulation, result, batch_size)
        return {**logs, **self.get_metrics_result()}

    def _update_metrics(self, stream: Stream, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Updates the metrics by what a stream's pass over a batch or micro-batch gave; returns logs."""
        del stream  # the only one
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _update_losses(self, streams: Sequence[Stream], result: Pass, batch_size: Size) -> None:
        """Updates the loss that `fit` shows."""
        losses = _undo_replica_share(result.losses)
        weights = [ops.cast(stream.weight, "float32") for stream in streams[1:]]
        total = ops.sum(ops.stack([ops.ones((), "float32"), *weights]) * losses) if weights else losses[0]
        loss_tracker(self).update_state(total, sample_weight=batch_size)

    def _finish_if_due(self, accumulation: Accumulation, result: Pass, batch_size: Size) -> None:
        """Adds a batch to its group, and makes the group's update if the batch completes it."""
        with outside_of_the_step():  # of a model that this step has just built
            self._build_untracked()
        accumulation.add(result, batch_size)

        def finish() -> None:
            self._finish(accumulation.mean(result), accumulation.examples)
            accumulation.begin_group()

        assigned = [*self.trainable_variables, *self.optimizer.variables, *self._untracked_variables()]
        do_if(accumulation.is_complete(), finish, assigned)

    def _finish(self, result: Pass, batch_size: Size) -> None:
        """Makes the update of a batch, or of several."""
        self._record_noise_scale(result, batch_size)
        self._apply(result)

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

    def _measuring(self, batch_size: Size, size: Size | None) -> Measuring | None:
        """Returns how the passes measure norms; None if neither the optimizer nor the noise scale reads them."""
        if self._noise_scale is None and not self._reads_norms():
            return None
        examples = self.norm_examples
        if examples is not None and self.examples_at_a_time is not None:
            examples = -(-examples // number_of_micro_batches(batch_size, self.examples_at_a_time))
        return Measuring(self.model, self._registry, examples, self._noise_scale is not None)

    def _size_of_micro_batches(self, batch_size: Size) -> Size | None:
        """Returns how many examples run at a time; None for all, without a loop."""
        if self.examples_at_a_time is not None:
            return self.examples_at_a_time
        # The loop does not run on a replica without examples, which adds nothing then.
        return ops.maximum(batch_size, 1) if self._may_be_empty(batch_size) else None

    def _may_be_empty(self, batch_size: Size) -> bool:
        """Returns whether a last, small batch may leave this replica without examples, which many kernels refuse."""
        return replica_may_be_empty(batch_size) and not meets_other_replicas(self.model)

    def _reads_norms(self) -> bool:
        """Returns whether the optimizer reads per-example norms."""
        clars = self._clars()
        return clars is not None and clars.reads_per_example_norms

    def _clars(self) -> CLARS | None:
        """Returns the optimizer if it is one that takes gradient norms, out of its loss-scaling wrapper."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, CLARS) else None

    @property
    def _registry(self) -> Registry:
        return KERAS.allowing_generic() if self.allow_generic else KERAS

    def _loss_scale(self) -> Any:
        """Returns the factor by which the optimizer has the loss multiplied."""
        return self.optimizer.scale_loss(ops.ones((), "float32"))

    def _without_weight_regularizers(self) -> contextlib.AbstractContextManager[None]:
        return without_weight_regularizers(self, self.model)

    def _untracked_variables(self) -> list[Any]:
        """Returns what steps assign and Keras does not know of, since it is not saved with the model."""
        found = getattr(self, "_noise_scale", None), getattr(self, "_accumulation", None)
        return [v for one in found if one is not None for v in one.variables]

    def _build_untracked(self) -> None:
        """Creates the variables of `_untracked_variables`, once the model has its own."""
        for one in (self._noise_scale, self._accumulation):
            if one is not None:
                one.build(self.trainable_variables)


def meets_other_replicas(model: keras.Model) -> bool:
    """Returns whether a layer communicates in the middle of the forward pass."""
    return any(getattr(layer, "synchronized", False) for layer in layers_within(model))


def _undo_replica_share(loss: Any) -> Any:
    """Under tf.distribute Keras divides each replica's loss by their number; metrics show the undivided loss."""
    return loss * number_of_replicas()
