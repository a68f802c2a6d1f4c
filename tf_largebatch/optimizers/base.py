"""The base of the layer-wise optimizers of Keras 3: everything but the norm that the rate divides by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch import check, keras_internals
from tf_largebatch.core import defaults
from tf_largebatch.core.exclusions import Exclusion
from tf_largebatch.core.paths import variable_path
from tf_largebatch.optimizers import update_kernels
from tf_largebatch.optimizers.arguments import (
    checked_learning_rate,
    may_differ,
    optional_count,
    optional_number,
    with_shared_texts,
)
from tf_largebatch.optimizers.replica_update import ReplicaUpdate
from tf_largebatch.optimizers.update import ABSENT


@with_shared_texts
class LayerwiseOptimizer(ReplicaUpdate, keras.optimizers.Optimizer):
    """SGD with momentum whose learning rate is multiplied, tensor by tensor, by a layer-wise rate.

        rate = min(eta * ||w|| / (denominator + epsilon), max_rate)      0 at denominator 0
        rate = unadapted_rate_factor                                     for excluded tensors

        {{update}}

    A subclass defines `denominator`, registers itself with Keras, and needs nothing else:

        @keras.saving.register_keras_serializable()
        class LARS(LayerwiseOptimizer):
            def denominator(self, gradient, undecayed):
                return l2_norm(gradient)

    Args:
        learning_rate: Number of 0 or more, `keras.optimizers.schedules.LearningRateSchedule`, or callable
            without arguments.
        {{layerwise_arguments}}
        {{keras_arguments}}
        name: Name of the optimizer, by default the class's.
    """

    def __init__(
        self,
        learning_rate: float
        | keras.optimizers.schedules.LearningRateSchedule
        | Callable[[], Any] = defaults.LARS.learning_rate,
        momentum: float = 0.9,
        eta: float = defaults.LARS.eta,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = defaults.LARS.max_rate,
        unadapted_rate_factor: float = defaults.LARS.unadapted_rate_factor,
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
        weight_decay = kwargs.pop("weight_decay", None)
        check.require(
            weight_decay is None,
            "weight_decay",
            weight_decay,
            f"left out: {type(self).__name__} has no decay that is decoupled from the gradient",
            "pass weight_decay_rate for L2 weight decay inside the gradient",
        )
        super().__init__(
            learning_rate=checked_learning_rate(learning_rate),
            clipnorm=optional_number("clipnorm", clipnorm),
            clipvalue=optional_number("clipvalue", clipvalue),
            global_clipnorm=optional_number("global_clipnorm", global_clipnorm),
            use_ema=check.flag("use_ema", use_ema),
            ema_momentum=check.plain(ema_momentum),
            ema_overwrite_frequency=optional_count("ema_overwrite_frequency", ema_overwrite_frequency, 1),
            loss_scale_factor=optional_number("loss_scale_factor", loss_scale_factor),
            gradient_accumulation_steps=optional_count("gradient_accumulation_steps", gradient_accumulation_steps, 2),
            name=name,
            **kwargs,
        )
        self._set_arguments(
            momentum=momentum,
            eta=eta,
            weight_decay_rate=weight_decay_rate,
            nesterov=nesterov,
            classic_momentum=classic_momentum,
            epsilon=epsilon,
            max_rate=max_rate,
            unadapted_rate_factor=unadapted_rate_factor,
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,
            exclude_from_weight_decay=exclude_from_weight_decay,
        )
        self.jit_compile = check.flag("jit_compile", jit_compile)
        self._keeps_batch_norms = False
        self._init_replica_update()

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the velocities, and packed float32 variables for K rates and twice K norms.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them.
        """
        if self.built:
            return
        self._select(variables)
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity") if may_differ(self.momentum, 0) else []
        self._packed_rates = self._add_packed_variable(len(variables), "layerwise_rates")
        self._packed_norms = self._add_packed_variable(len(variables), "gradient_norms")
        # Always, so that files with the optimizer's variables hold the same whether the norms are kept or not.
        self._packed_batch_norms = self._add_packed_variable(len(variables), "batch_gradient_norms")

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Replaces the argument `exclude_from_weight_decay`; a method that every Keras optimizer has.

        Args:
            var_list: Variables without weight decay.
            var_names: Patterns, searched in the variable's path.

        Raises:
            ValueError: If the optimizer is already built.
        """
        if self.built:
            raise ValueError("exclude_from_weight_decay() must be called before the optimizer is built.")
        self._decay_exclusion = Exclusion("exclude_from_weight_decay", [*(var_list or ()), *(var_names or ())])

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates the variables, see `keras.optimizers.Optimizer.apply`.

        Sparse gradients (`tf.IndexedSlices`) are made dense first, which adds up repeated indices: norms,
        clipping and momentum are those of the whole tensor.

        Args:
            grads: One gradient a variable, in its shape; None where a variable has none, which skips it.
            trainable_variables: The variables, all or some of those that the optimizer was built with. By default all.

        Raises:
            ValueError: If the optimizer was built without one of the variables.
        """
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if self.built:
            self._refuse_new_variables(variables)
        if len(grads) == len(variables):
            pairs = zip(grads, variables, strict=True)
            grads = [update_kernels.dense(gradient, variable) for gradient, variable in pairs]
        super().apply(grads, trainable_variables)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Overwrites variables with their moving averages at the end of `fit`, if `use_ema` asks for them.

        Args:
            var_list: The variables, all or some of those that the optimizer was built with: not those of layers
                frozen since, which keep their values.
        """
        if self.use_ema:
            averages = keras_internals.moving_averages(self)
            for variable in var_list:
                average = averages[self._get_variable_index(variable)]
                variable.assign(1.0 * average)  # a copy: JAX refuses to donate one array as two variables' values

    @property
    def keeps_batch_gradient_norms(self) -> bool:
        """Whether `batch_gradient_norms` returns any."""
        return self._keeps_batch_norms

    def keep_batch_gradient_norms(self) -> None:
        """Makes every step that is traced from now on keep what `batch_gradient_norms` returns.

        It costs a pass over the gradients. Steps that have been traced already keep nothing: call
        `model.make_train_function(force=True)` to trace them anew.
        """
        self._keeps_batch_norms = True

    def batch_gradient_norms(self) -> dict[str, float]:
        """Returns the norms of the batch's gradients in the last step, `||grad||`.

        Returns:
            `{variable path: norm}`, in the unit of the unscaled mean-loss gradient, of the gradients as they are
            applied: summed over replicas, averaged over accumulated micro-batches, clipped, without weight decay.
            Empty unless `keep_batch_gradient_norms` was called.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_packed_batch_norms") if self._keeps_batch_norms else {}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as JSON types; variables become their paths.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with Keras.
        """
        config = super().get_config()
        del config["weight_decay"]
        return {**config, **self._arguments(), "jit_compile": self.jit_compile}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LayerwiseOptimizer:
        """Returns an optimizer from `get_config()`, without state.

        Args:
            config: The configuration.
            custom_objects: Names of custom schedules and predicates, and their classes or functions.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            return super().from_config(dict(config), custom_objects)

    def _separate_norms(self, grads_and_vars: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], Any]:
        """Splits off the [K] norms to divide by, where a subclass sends them along with the gradients."""
        return grads_and_vars, None

    def _update_and_record(
        self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any, norms: Any
    ) -> None:
        """Updates the variables with their gradients, and assigns the packed rates and norms."""
        packed_rates, packed_norms = self._update_all(gradients, variables, learning_rate, norms)
        self.assign(self._packed_rates, packed_rates)
        self.assign(self._packed_norms, packed_norms)
        if self._keeps_batch_norms:
            batch_norms: list[Any] = [ABSENT] * len(self._adapted)
            for gradient, variable in zip(gradients, variables, strict=True):
                norm = update_kernels.l2_norm(ops.cast(gradient, "float32"))
                batch_norms[self._get_variable_index(variable)] = norm
            self.assign(self._packed_batch_norms, ops.stack(batch_norms))

    def _add_packed_variable(self, size: int, name: str) -> Any:
        return self.add_variable((size,), keras.initializers.Constant(ABSENT), "float32", name=name)

    def _index_if_known(self, variable: Any) -> int | None:
        return keras_internals.variable_index(self, variable)

    def _refuse_new_variables(self, variables: Sequence[Any]) -> None:
        new = [variable_path(variable) for variable in variables if self._index_if_known(variable) is None]
        if new:
            raise ValueError(
                f"{self.name} trains the {len(self._trainable_variables)} variables that it was built with, and {new} "
                "are none of them: compile with a new optimizer after layers were added or unfrozen, or build it with "
                "all variables before layers are frozen."
            )
