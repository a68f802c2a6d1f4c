"""CLARS, complete layer-wise adaptive rate scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.core import defaults
from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.optimizers.arguments import saved, with_shared_texts
from tf_largebatch.optimizers.base import LayerwiseOptimizer
from tf_largebatch.optimizers.norm_source import NormSource, marked


@keras.saving.register_keras_serializable(package="tf_largebatch")
@with_shared_texts
class CLARS(NormSource, LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling: LARS with the mean norm of the *per-example* gradients.

    For each trainable tensor `w`, a batch of B examples with losses `f_i`, and the gradient `grad` of their
    mean (clipped if asked, summed over replicas, averaged over accumulated micro-batches):

        s    = (1/B) sum_i ||grad f_i(w)||
        g    = grad + weight_decay_rate * w
        d    = max(||grad||^(1 - q) * s^q, ||grad|| / max_agreement)      q = norm_exponent, 1 by default
        rate = min(eta * ||w|| / (d + epsilon), max_rate)          unadapted_rate_factor for excluded tensors

        {{update}}

    `s` is measured before clipping and without weight decay. The rate is that of LARS times `||grad|| / s`, which is 1
    where all examples agree and about `1 / sqrt(B)` where their gradients are independent noise. The paper runs CLARS
    without a warmup.

    {{numerics}}

    A tensor has rate 0 in a step in which `d` is 0, as in the authors' code.
    {{zero_norms}}

    {{clars_source}}

    Args:
        learning_rate: Number of 0 or more, `keras.optimizers.schedules.LearningRateSchedule`, or callable
            without arguments.
        {{layerwise_arguments}}
        gradient_norms: Where `s` comes from. `"per_example"`: from the model wrapper that measures it; without one
            the first step raises an error. `"replica"`: the norm of each separately computed gradient (each
            replica's, each accumulated micro-batch's), averaged; with one replica and no accumulation this is LARS.
            `"auto"`: per example if measured, else per replica with one warning.
        {{norm_exponent}}
        {{max_agreement}}
        {{keras_arguments}}
        name: Name of the optimizer, `"clars"` by default.

    Raises:
        ValueError: If an argument is outside its range; when the optimizer is built, if a pattern or variable
            of an `exclude_*` argument matches no trained variable; in a step, if `gradient_norms` is
            `"per_example"` and no norms arrive, or those that arrive lack an adapted tensor.

    Examples:
        Any Keras model; without a wrapper that measures norms, those of the replicas:

        >>> import keras
        >>> import numpy as np
        >>> from tf_largebatch.core.schedules import linear_scaling
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model.compile(optimizer=CLARS(gradient_norms="replica"), loss="mse")

        As the papers print it, for long runs: no caps, and the plain learning rate for batch norms and biases.

        >>> optimizer = CLARS(8.0, eta=0.01, max_rate=None, max_agreement=None, unadapted_rate_factor=1.0)

        What the authors' released code does: popular momentum, a cap of 0.1, weight decay on every tensor,
        batch norms and biases excluded from adaptation by name, norms of mini-batches of 8. Here a batch of
        512 is 64 micro-batches of 8 (the authors measure the norms on further data after each update):

        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((4,)),
        ...         keras.layers.Dense(8, use_bias=False),
        ...         keras.layers.BatchNormalization(name="bn"),
        ...         keras.layers.Dense(3),
        ...     ]
        ... )
        >>> optimizer = CLARS(
        ...     learning_rate=linear_scaling(0.1, batch_size=512, base_batch_size=128),
        ...     momentum=0.9,
        ...     eta=0.01,
        ...     weight_decay_rate=2e-4,
        ...     classic_momentum=False,
        ...     max_rate=0.1,
        ...     max_agreement=None,
        ...     unadapted_rate_factor=1.0,
        ...     gradient_norms="replica",
        ...     exclude_from_layer_adaptation=["bn", "bias"],
        ...     exclude_from_weight_decay=[],
        ...     gradient_accumulation_steps=64,
        ... )
        >>> model.compile(optimizer=optimizer, loss="mse")
        >>> history = model.fit(np.ones((512, 4)), np.zeros((512, 3)), batch_size=8, verbose=0)
        >>> sorted(path.split("/")[-1] for path, rate in optimizer.layerwise_rates().items() if rate == 1)
        ['beta', 'bias', 'gamma']
    """

    _remedy = "train with tf_largebatch.LargeBatchModel, which measures them, or pass gradient_norms='replica'."
    _alone = "with a single replica and no accumulation"

    def __init__(
        self,
        learning_rate: float
        | keras.optimizers.schedules.LearningRateSchedule
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
        jit_compile: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        # By position, in the order of `LayerwiseOptimizer`.
        layerwise = learning_rate, momentum, eta, weight_decay_rate, nesterov, classic_momentum, epsilon, max_rate
        unadapted = unadapted_rate_factor, exclude_from_layer_adaptation, exclude_from_weight_decay
        of_keras = clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency
        scaling = loss_scale_factor, gradient_accumulation_steps
        arguments: Any = (*layerwise, *unadapted, jit_compile, *of_keras, *scaling, name)
        super().__init__(*arguments, **kwargs)
        self._set_norm_source(gradient_norms, norm_exponent, max_agreement)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the velocities, the packed rates and norms, and an accumulator of norms if needed.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them.
        """
        if self.built:
            return
        super().build(variables)
        if self.gradient_accumulation_steps:
            self._norm_accumulator = self.add_variable((len(variables),), dtype="float32", name="norm_accumulator")

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates the variables with the norms of `measured_gradient_norms`, see `keras.optimizers.Optimizer.apply`.

        Args:
            grads: One gradient a variable, in its shape; None where a variable has none, which skips it.
            trainable_variables: The variables, all or some of those that the optimizer was built with. By default all.

        Raises:
            ValueError: If the optimizer was built without one of the variables, or norms are missing.
        """
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        with self._in_the_order_of(variables):
            super().apply(grads, trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as JSON types; variables become their paths.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with Keras.
        """
        config = {**super().get_config(), "gradient_norms": self._norm_source}
        config["max_agreement"] = saved("max_agreement", self.max_agreement)
        return {**config, "norm_exponent": saved("norm_exponent", self.norm_exponent)}

    # Keras hands gradients to the methods below one after the other; the norms go with them.

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        # The last point at which gradients are unscaled but not yet clipped, averaged and reduced.
        pairs = zip(trainable_variables, grads, strict=True)
        by_index = {self._get_variable_index(variable): gradient for variable, gradient in pairs}
        norms = self._local_norms(by_index, self.loss_scale_factor or 1.0)
        with self.measured_gradient_norms(norms):
            super()._backend_apply_gradients(grads, trainable_variables)
        if self.gradient_accumulation_steps:
            updated = (self._iterations + 1) % self.gradient_accumulation_steps == 0
            added = self._norm_accumulator + norms.values
            self._norm_accumulator.assign(ops.where(updated, ops.zeros_like(added), added))

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        norms = self._own_norms()
        if self.gradient_accumulation_steps:
            mean = (norms.values + self._norm_accumulator) / self.gradient_accumulation_steps
            norms = GradientNorms(mean, norms.known)
        # One more pair for the all-reduce.
        together, variables = [*grads, marked(norms)], [*trainable_variables, self._packed_norms]
        super()._backend_update_step(together, variables, learning_rate)

    def _separate_norms(self, grads_and_vars: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], Any]:
        *pairs, (norms, _) = grads_and_vars
        return pairs, norms
