"""CLARS for tf_keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tf_keras

from tf_largebatch.core import defaults
from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.optimizers.arguments import saved, with_shared_texts
from tf_largebatch.optimizers.norm_source import NormSource, marked
from tf_largebatch.tf_keras.optimizers.base import LayerwiseOptimizer, Pair


@tf_keras.utils.register_keras_serializable(package="tf_largebatch")
@with_shared_texts
class CLARS(NormSource, LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling for tf_keras and Model Garden.

    For each trainable tensor `w`, a batch of B examples with losses `f_i`, and the gradient `grad` of their mean
    (summed over replicas, clipped if asked):

        s    = (1/B) sum_i ||grad f_i(w)||
        g    = grad + weight_decay_rate * w
        d    = max(||grad||^(1 - q) * s^q, ||grad|| / max_agreement)      q = norm_exponent, 1 by default
        rate = min(eta * ||w|| / (d + epsilon), max_rate)          unadapted_rate_factor for excluded tensors

        {{update}}

    `s` is measured before clipping and without weight decay; `measured_gradient_norms` hands it to the optimizer. The
    optimizer may be wrapped in `tf_keras.mixed_precision.LossScaleOptimizer`, which then skips the step if a norm is
    not finite, or in Model Garden's `ExponentialMovingAverage`.

    {{numerics}}

    A tensor has rate 0 in a step in which `d` is 0, as in the authors' code.
    {{zero_norms}}

    {{clars_source}}

    Args:
        learning_rate: Number of 0 or more, `tf_keras` learning-rate schedule, or callable without arguments.
        {{layerwise_arguments}}
        gradient_norms: Where `s` comes from. `"per_example"`: from the training step, which hands it over; without it
            the first step raises an error. `"replica"`: the norm of each replica's gradient, averaged; with one
            replica this is LARS. `"auto"`: per example if handed over, else per replica with one warning.
        {{norm_exponent}}
        {{max_agreement}}
        {{tf_keras_arguments}}
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
        learning_rate: float
        | tf_keras.optimizers.schedules.LearningRateSchedule
        | Callable[[], Any] = defaults.CLARS.learning_rate,
        momentum: float = 0.9,
        eta: float = defaults.CLARS.eta,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = defaults.CLARS.max_rate,
        unadapted_rate_factor: float = defaults.CLARS.unadapted_rate_factor,
        gradient_norms: str = "auto",
        norm_exponent: float = 1.0,
        max_agreement: float | None = defaults.CLARS.max_agreement,
        exclude_from_layer_adaptation: Any = None,
        exclude_from_weight_decay: Any = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_aggregator: Callable[[list[Pair]], list[Pair]] | None = None,
        gradient_transformers: Sequence[Callable[[list[Pair]], list[Pair]]] | None = None,
        name: str | None = None,
    ) -> None:
        # By position, in the order of `LayerwiseOptimizer`.
        layerwise = learning_rate, momentum, eta, weight_decay_rate, nesterov, classic_momentum, epsilon, max_rate
        unadapted = unadapted_rate_factor, exclude_from_layer_adaptation, exclude_from_weight_decay
        of_tf_keras = clipnorm, clipvalue, global_clipnorm, gradient_aggregator, gradient_transformers
        arguments: Any = (*layerwise, *unadapted, *of_tf_keras, name)
        super().__init__(*arguments)
        self._set_norm_source(gradient_norms, norm_exponent, max_agreement)

    def apply_gradients(
        self,
        grads_and_vars: Sequence[Pair],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Any:
        """Updates the variables with the norms of `measured_gradient_norms`, see the base class.

        Args:
            grads_and_vars: Pairs of a gradient, None to skip the variable, and a variable.
            name: Name of the operation.
            experimental_aggregate_gradients: Whether the replicas' gradients and norms are still to be summed.
        """
        pairs = self._prepared(grads_and_vars)
        with self._in_the_order_of([variable for _, variable in pairs if not self._is_packed_norms(variable)]):
            if not experimental_aggregate_gradients and not self._split_off_norms(pairs)[1]:
                pairs = [*pairs, (marked(self._norms_of(pairs)), self._packed_norms)]
            return super().apply_gradients(pairs, name, experimental_aggregate_gradients)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as JSON types; variables become their paths. Functions on gradients are left out.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with
                `keras.saving.register_keras_serializable`.
        """
        config = {**super().get_config(), "gradient_norms": self._norm_source}
        config["max_agreement"] = saved("max_agreement", self.max_agreement)
        return {**config, "norm_exponent": saved("norm_exponent", self.norm_exponent)}

    def _aggregate_gradients(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        # The last point at which gradients are neither summed nor clipped.
        pairs = self._prepared(grads_and_vars)
        with self._in_the_order_of([variable for _, variable in pairs]):
            norms = self._norms_of(pairs)
        *reduced, (values, _) = super()._aggregate_gradients([*pairs, (norms.values, self._packed_norms)])
        return [*reduced, (marked(GradientNorms(values, norms.known)), self._packed_norms)]

    def _norms_of(self, pairs: Sequence[Pair]) -> GradientNorms:
        """Returns this replica's norms of the variables that have a gradient."""
        present = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
        return self._local_norms({self._get_variable_index(variable): gradient for gradient, variable in present})
