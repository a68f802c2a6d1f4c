"""CLARS for tf_keras."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tf_largebatch.optimizers.norm_source import NormSource, check_norm_source
from tf_largebatch.optimizers.replica_local import Norms, ReplicaLocal
from tf_largebatch.optimizers.update import ABSENT
from tf_largebatch.tf_keras.optimizers.base import LayerwiseOptimizer, Pair


@tf_keras.utils.register_keras_serializable(package="tf_largebatch")
class CLARS(NormSource, LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling for tf_keras and Model Garden.

    For each trainable tensor `w`, a batch of B examples with losses `f_i`, and the gradient `grad` of their mean
    (summed over replicas, clipped if asked):

        s    = (1/B) sum_i ||grad f_i(w)||
        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (s + epsilon), max_rate)          1 for excluded tensors

        classic momentum:   v <- momentum * v + learning_rate * rate * g ;   w <- w - v
        popular momentum:   v <- momentum * v + g ;                          w <- w - learning_rate * rate * v

    Everything else about the update is as in `tf_largebatch.CLARS`, whose code it runs. `s` is measured before
    clipping and without weight decay, and is handed over with `measured_gradient_norms`. It may be wrapped in
    `tf_keras.mixed_precision.LossScaleOptimizer`, which then skips the step if a norm is not finite, or in Model
    Garden's `ExponentialMovingAverage`.

    Source: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", 2020, arXiv 2002.01576 (AAAI 2021 as
    "Large Batch Optimization for Deep Learning Using New Complete Layer-Wise Adaptive Rate Scaling"). The
    printed method has neither cap nor choice of momentum; both are in the authors' code.

    Args:
        learning_rate: Number of 0 or more, `tf_keras` learning-rate schedule, or callable without arguments.
        momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0; the authors' code uses 0.01.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more.
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm, in its unit, 0 or more.
        max_rate: Cap on the rate of adapted tensors, above 0, or None for no cap; the authors' code uses 0.1.
        gradient_norms: Where `s` comes from. `"per_example"`: handed over by the training step, an error if it was
            not. `"replica"`: the norm of each replica's gradient, averaged; with one replica this is LARS.
            `"auto"`: per example if handed over, else per replica with one warning.
        exclude_from_layer_adaptation: Tensors that keep the plain learning rate: one, or a list, of patterns
            (`re.search` on the variable's name without its ":0", such as "conv2d_1/kernel"), variables, and
            predicates of a variable. By default tensors of fewer than two dimensions (biases, normalisation);
            `[]` for none.
        exclude_from_weight_decay: Tensors without weight decay, said in the same way, with the same default.
        clipnorm: Each gradient is clipped to this norm, before decay.
        clipvalue: Each gradient's entries are clipped to this magnitude, before decay.
        global_clipnorm: All gradients are clipped together to this norm, before decay.
        gradient_aggregator: Replaces the sum over replicas; takes and returns pairs of gradient and variable, one
            of which holds the norms.
        gradient_transformers: Applied to the summed pairs in place of clipping. Neither is part of the
            configuration.
        name: Name of the optimizer, `"clars"` by default.

    Raises:
        ValueError: If an argument is outside its range; in the first step, if a pattern or variable of an
            `exclude_*` argument matches no trained variable; in a step, if `gradient_norms` is `"per_example"` and
            no norms arrive, or those that arrive lack an adapted tensor.
    """

    _remedy = (
        "measure them in the training step and hand them over with measured_gradient_norms, as the task of "
        "tf_largebatch.model_garden does, or pass gradient_norms='replica'."
    )
    _alone = "with a single replica"

    def __init__(
        self,
        learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.01,
        momentum: float = 0.9,
        eta: float = 0.01,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = None,
        gradient_norms: str = "auto",
        exclude_from_layer_adaptation: Any = None,
        exclude_from_weight_decay: Any = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_aggregator: Callable[[list[Any]], list[Any]] | None = None,
        gradient_transformers: Sequence[Callable[[list[Any]], list[Any]]] | None = None,
        name: str | None = None,
    ) -> None:
        check_norm_source(gradient_norms)
        super().__init__(
            learning_rate,
            momentum=momentum,
            eta=eta,
            weight_decay_rate=weight_decay_rate,
            nesterov=nesterov,
            classic_momentum=classic_momentum,
            epsilon=epsilon,
            max_rate=max_rate,
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,
            exclude_from_weight_decay=exclude_from_weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            gradient_aggregator=gradient_aggregator,
            gradient_transformers=gradient_transformers,
            name=name,
        )
        self._set_norm_source(gradient_norms)
        self._order = ReplicaLocal()

    @contextlib.contextmanager
    def measured_gradient_norms(self, norms: Norms, variables: Sequence[Any] | None = None) -> Iterator[None]:
        """Hands over measured norms to the `apply_gradients` inside the `with` block, also that of a wrapper.

        They are subject to the same rules as the gradients given to `apply_gradients`: each replica hands over the
        sum over *its* examples of the norm of the example's contribution to the gradient of its loss, which is its
        share of the mean loss over the global batch, so that the replicas' norms add up to `s`; and they are
        unscaled (`LossScaleOptimizer.get_unscaled_gradients(norms)` does it). They are summed over replicas in the
        gradients' own all-reduce. To be called in replica context, where the gradients are.

        Args:
            norms: `{variable path: norm}`, or a list with one norm or None for each variable in the order of those
                given to `apply_gradients`. Norms are scalar floating tensors; every tensor with layer adaptation
                that has a gradient needs one, others are welcome.
            variables: The variables of that list, where the optimizer cannot know them: `LossScaleOptimizer` drops
                those without gradient.

        Yields:
            Nothing.
        """
        with self._handed_norms.holding((norms, variables)):
            yield

    def apply_gradients(
        self,
        grads_and_vars: Sequence[Pair],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Any:
        """As in the base class; without aggregation the norms, too, are those of the whole batch."""
        pairs = self._prepared(grads_and_vars)
        if not experimental_aggregate_gradients and not self._split_off_norms(pairs)[1]:
            present = [pair for pair in pairs if pair[0] is not None]
            norms, known = self._pack_norms(present, [variable for _, variable in pairs])
            pairs = [*pairs, (tf.where(known, norms, ABSENT), self._packed_norms)]
        with self._order.holding([variable for _, variable in pairs]):
            return super().apply_gradients(pairs, name, experimental_aggregate_gradients)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON types; variables become their paths. Functions on gradients are left out.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with
                `keras.saving.register_keras_serializable`.
        """
        return {**super().get_config(), "gradient_norms": self._norm_source}

    def _aggregate_gradients(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        # The last point at which gradients are neither summed nor clipped.
        pairs = self._prepared(grads_and_vars)
        order = self._order.get() or [variable for _, variable in pairs]
        norms, known = self._pack_norms(pairs, order)
        *reduced, (norms, _) = super()._aggregate_gradients([*pairs, (norms, self._packed_norms)])
        return [*reduced, (tf.where(known, norms, ABSENT), self._packed_norms)]

    def _pack_norms(self, pairs: Sequence[Pair], order: Sequence[Any]) -> tuple[Any, list[bool]]:
        """This replica's norms, [K] float32 (0 if unknown), and which are known."""
        by_index = {self._get_variable_index(variable): gradient for gradient, variable in pairs}
        handed = self._handed_norms.get()
        return self._packed_norms_of(by_index, None if handed is None else self._by_variable(*handed, order))

    def _by_variable(self, norms: Norms, variables: Sequence[Any] | None, order: Sequence[Any]) -> Norms:
        """A list of norms in the order of the K variables; a mapping stays one."""
        if isinstance(norms, Mapping):
            return norms
        of = order if variables is None else variables
        if len(norms) != len(of):
            raise ValueError(
                f"Received {len(norms)} measured gradient norms for {len(of)} variables: hand over one (or None) for "
                "each, and say measured_gradient_norms(norms, variables) where a wrapper drops variables without "
                "gradient, as LossScaleOptimizer does."
            )
        sorted_norms = [None] * len(self._adapted)
        for norm, variable in zip(norms, of, strict=True):
            index = self._index_if_known(variable)
            if index is not None:
                sorted_norms[index] = norm
        return sorted_norms
