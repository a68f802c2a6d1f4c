"""What LARS and CLARS share: everything but the norm in the denominator of the rate."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core.exclusions import Exclusion
from tf_largebatch.optimizers import update_kernels
from tf_largebatch.optimizers.update import ABSENT, LayerwiseUpdate, densify, require
from tf_largebatch.optimizers.xla_update import CompiledPerDevice


class LayerwiseOptimizer(LayerwiseUpdate, keras.optimizers.Optimizer):
    """SGD with momentum whose learning rate is multiplied, tensor by tensor, by a layer-wise rate.

    The arguments are those of `LARS`.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any],
        *,
        momentum: float,
        eta: float,
        weight_decay_rate: float,
        nesterov: bool,
        classic_momentum: bool,
        epsilon: float,
        max_rate: float | None,
        exclude_from_layer_adaptation: Any,
        exclude_from_weight_decay: Any,
        jit_compile: bool,
        **kwargs: Any,
    ) -> None:
        if isinstance(learning_rate, numbers.Real):
            require(float(learning_rate) >= 0, "learning_rate", learning_rate, "0 or more")
            learning_rate = float(learning_rate)
        if kwargs.pop("weight_decay", None) is not None:
            raise ValueError(
                f"{type(self).__name__} has no `weight_decay` (decoupled from the gradient); "
                "pass `weight_decay_rate` for L2 weight decay inside the gradient."
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self._set_arguments(
            momentum=momentum,
            eta=eta,
            weight_decay_rate=weight_decay_rate,
            nesterov=nesterov,
            classic_momentum=classic_momentum,
            epsilon=epsilon,
            max_rate=max_rate,
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,
            exclude_from_weight_decay=exclude_from_weight_decay,
        )
        self.jit_compile = bool(jit_compile)
        self._compiled = CompiledPerDevice()
        self._keeps_batch_norms = False

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the velocities and one packed float32 variable each for K rates and K gradient norms.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them.
        """
        if self.built:
            return
        self._select(variables)
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity") if self.momentum else []
        self._packed_rates = self._add_packed_variable(len(variables), "layerwise_rates")
        self._packed_norms = self._add_packed_variable(len(variables), "gradient_norms")
        if self._keeps_batch_norms:
            self._create_batch_norms()

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Replaces the argument `exclude_from_weight_decay`; Keras's own way of saying it.

        Args:
            var_list: Variables without weight decay.
            var_names: Patterns, searched in the variable's path.

        Raises:
            ValueError: If the optimizer is already built.
        """
        if self.built:
            raise ValueError("`exclude_from_weight_decay()` must be called before the optimizer is built.")
        self._decay_exclusion = Exclusion("exclude_from_weight_decay", [*(var_list or ()), *(var_names or ())])

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates the variables, see `keras.optimizers.Optimizer.apply`.

        Sparse gradients (`tf.IndexedSlices`) are made dense first, which adds up repeated indices: norms,
        clipping and momentum are those of the whole tensor.

        Args:
            grads: One gradient a variable, in its shape; None where a variable has none, which skips it.
            trainable_variables: The variables. By default those the optimizer was built with.
        """
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if len(grads) == len(variables):
            grads = [densify(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]
        super().apply(grads, trainable_variables)

    @property
    def keeps_batch_gradient_norms(self) -> bool:
        """Whether `batch_gradient_norms` returns any."""
        return self._keeps_batch_norms

    def keep_batch_gradient_norms(self) -> None:
        """Has every step that is traced from now on keep what `batch_gradient_norms` returns.

        It costs a pass over the gradients. Steps that have been traced already keep nothing: call
        `model.make_train_function(force=True)` to trace them anew. The norms are not saved with the optimizer.
        """
        self._keeps_batch_norms = True
        if self.built:
            self._create_batch_norms()

    def batch_gradient_norms(self) -> dict[str, float]:
        """The norms of the batch's gradients in the last step: `||grad||`, CLARS's denominator's counterpart.

        Returns:
            `{variable path: norm}`, in the unit of the unscaled mean-loss gradient, of the gradients as they are
            applied: summed over replicas, averaged over accumulated micro-batches, clipped, without weight decay.
            Empty unless `keep_batch_gradient_norms` was called.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_batch_norms") if self._keeps_batch_norms else {}

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON types; variables become their paths.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with Keras.
        """
        config = super().get_config()
        del config["weight_decay"]
        return {
            **config,
            **self._arguments(),
            "jit_compile": self.jit_compile,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LayerwiseOptimizer:
        """An optimizer from `get_config()`, without state.

        Args:
            config: The configuration.
            custom_objects: Names of custom schedules and predicates, and their classes or functions.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            return super().from_config(dict(config), custom_objects)

    def _create_batch_norms(self) -> None:
        if not hasattr(self, "_batch_norms"):
            with tf.init_scope():
                values = keras.Variable([ABSENT] * len(self._adapted), trainable=False, dtype="float32")
            # Past Keras's tracking: what is looked at is no state to save.
            object.__setattr__(self, "_batch_norms", values)

    def _add_packed_variable(self, size: int, name: str) -> Any:
        return self.add_variable((size,), keras.initializers.Constant(ABSENT), "float32", name=name)

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        try:
            super()._backend_apply_gradients(grads, trainable_variables)
        except RuntimeError as error:
            if not self.gradient_accumulation_steps or "merge_call" not in str(error):
                raise
            raise RuntimeError(
                "Keras cannot accumulate gradients under this tf.distribute strategy inside a tf.function, with "
                "any optimizer: split the batch with tf_largebatch.LargeBatchModel(micro_batch_size=...) instead "
                f"of gradient_accumulation_steps={self.gradient_accumulation_steps}."
            ) from error

    def _distributed_tf_update_step(
        self, distribution: Any, grads_and_vars: Sequence[tuple[Any, Any]], learning_rate: Any
    ) -> None:
        pairs, norms = self._separate_norms(list(grads_and_vars))
        variables = [variable for _, variable in pairs]

        def update_all(learning_rate: Any, norms: Any, gradients: list[Any]) -> None:
            rows_of_rates, rows_of_norms = self._update_all(gradients, variables, learning_rate, norms)
            self.assign(self._packed_rates, rows_of_rates)
            self.assign(self._packed_norms, rows_of_norms)
            if self._keeps_batch_norms:
                whole = [ABSENT] * len(self._adapted)
                for gradient, variable in zip(gradients, variables, strict=True):
                    whole[self._get_variable_index(variable)] = update_kernels.l2_norm(tf.cast(gradient, tf.float32))
                self.assign(self._batch_norms, tf.stack(whole))

        def update_replica(local_rates: Any, learning_rate: Any, norms: Any, gradients: list[Any]) -> None:
            if self.jit_compile:
                key = (self._keeps_batch_norms, *(self._get_variable_index(variable) for variable in variables))
                tensors = tf.convert_to_tensor(learning_rate), norms, gradients
                self._compiled(update_all, local_rates.device, key, *tensors)
            else:
                update_all(learning_rate, norms, gradients)

        # One update context for all variables, not Keras's one a variable: what an update returns comes back
        # wrapped differently by each strategy, so rates have to be packed where they are made.
        gradients = [gradient for gradient, _ in pairs]
        distribution.extended.update(
            self._packed_rates.value, update_replica, args=(learning_rate, norms, gradients), group=False
        )

    def _separate_norms(self, grads_and_vars: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], Any]:
        """Splits off the [K] norms to adapt to, where a subclass reduced them along with the gradients."""
        return grads_and_vars, None
