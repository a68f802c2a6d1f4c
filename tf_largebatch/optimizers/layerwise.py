"""What LARS and CLARS share: everything but the norm in the denominator of the rate."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core import momentum as momentum_steps
from tf_largebatch.core import rates
from tf_largebatch.core.selection import Exclusion, variable_path
from tf_largebatch.optimizers import fused
from tf_largebatch.optimizers.compiled import CompiledPerDevice

# In the packed variables: this tensor was not updated, or has no norm. No rate or norm is negative.
ABSENT = -1.0


class LayerwiseOptimizer(keras.optimizers.Optimizer):
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
            _require(float(learning_rate) >= 0, "learning_rate", learning_rate, "0 or more")
            learning_rate = float(learning_rate)
        _require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1, for example 0.9")
        _require(0 < eta < math.inf, "eta", eta, "above 0, for example 0.001")
        _require(0 <= epsilon < math.inf, "epsilon", epsilon, "0 or more, for example 1e-6")
        _require(0 <= weight_decay_rate < math.inf, "weight_decay_rate", weight_decay_rate, "0 or more")
        if max_rate is not None:
            _require(max_rate > 0, "max_rate", max_rate, "above 0, or None for no cap")
        if nesterov and not momentum:
            raise ValueError("`nesterov=True` needs a `momentum` above 0, for example 0.9; received momentum=0.")
        if kwargs.pop("weight_decay", None) is not None:
            raise ValueError(
                f"{type(self).__name__} has no `weight_decay` (decoupled from the gradient); "
                "pass `weight_decay_rate` for L2 weight decay inside the gradient."
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = float(momentum)
        self.eta = float(eta)
        self.weight_decay_rate = float(weight_decay_rate)
        self.nesterov = bool(nesterov)
        self.classic_momentum = bool(classic_momentum)
        self.epsilon = float(epsilon)
        self.max_rate = None if max_rate is None else float(max_rate)
        self.jit_compile = bool(jit_compile)
        self._compiled = CompiledPerDevice()
        self._keeps_batch_norms = False
        self._adaptation_exclusion = Exclusion("exclude_from_layer_adaptation", exclude_from_layer_adaptation)
        self._decay_exclusion = Exclusion("exclude_from_weight_decay", exclude_from_weight_decay)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the velocities and one packed float32 variable each for K rates and K gradient norms.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them.
        """
        if self.built:
            return
        self._adapted = tuple(not excluded for excluded in self._adaptation_exclusion.select(variables))
        self._decayed = tuple(not excluded for excluded in self._decay_exclusion.select(variables))
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
            grads = [_densify(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]
        super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any, gradient_norm: Any = None
    ) -> tuple[Any, Any]:
        """Updates one variable and its velocity.

        Args:
            gradient: Dense gradient, summed over replicas and clipped, without weight decay.
            variable: The variable.
            learning_rate: Scalar.
            gradient_norm: Scalar float32 norm to adapt to. By default that of the gradient with decay.

        Returns:
            The layer-wise rate and the norm it was made from, scalars; 1 and -1 if excluded.
        """
        index = self._get_variable_index(variable)
        dtype = rates.compute_dtype(variable.dtype)
        fast = dtype == keras.backend.standardize_dtype(variable.dtype)
        weight = tf.cast(variable, dtype)
        gradient = tf.cast(gradient, dtype)
        step_size = tf.cast(learning_rate, dtype)
        decay = self.weight_decay_rate if self._decayed[index] else 0.0
        through_velocity = (
            fast and not self.nesterov and self.momentum >= fused.SMALLEST_MOMENTUM_TO_DECAY_BY
        ) and not (self._adapted[index] and gradient_norm is None)
        if decay and not through_velocity:
            gradient = gradient + decay * weight
        rate, norm = 1.0, ABSENT
        if self._adapted[index]:
            norm = fused.l2_norm(gradient) if gradient_norm is None else tf.cast(gradient_norm, dtype)
            rate = rates.layerwise_rate(fused.l2_norm(weight), norm, self.eta, self.epsilon, self.max_rate)
            step_size = step_size * rate
        velocity = self._velocities[index] if self.momentum else None
        if decay and through_velocity:
            factor = -step_size * decay if self.classic_momentum else decay
            fused.decay_velocity(_native(velocity), weight, factor, self.momentum)
        step = self._fused_step if fast else self._rounded_step
        step(variable, velocity, gradient, step_size)
        return rate, norm

    def _fused_step(self, variable: Any, velocity: Any, gradient: tf.Tensor, step_size: tf.Tensor) -> None:
        step = fused.classic_step if self.classic_momentum else fused.popular_step
        step(_native(variable), _native(velocity), gradient, step_size, self.momentum, self.nesterov)

    def _rounded_step(self, variable: Any, velocity: Any, gradient: tf.Tensor, step_size: tf.Tensor) -> None:
        """The same for variables stored in fewer bits than the update is computed in."""
        decrement = step_size * gradient
        if velocity is not None:
            step = momentum_steps.classic_step if self.classic_momentum else momentum_steps.popular_step
            sign = -1.0 if self.classic_momentum else 1.0
            old = sign * tf.cast(velocity, gradient.dtype)
            new, decrement = step(gradient, old, step_size, self.momentum, self.nesterov)
            self.assign(velocity, sign * new)
        self.assign_sub(variable, decrement)

    def layerwise_rates(self) -> dict[str, float]:
        """The layer-wise rates of the last step.

        Returns:
            `{variable path: rate}` for every tensor updated in that step; excluded tensors have rate 1. A
            second variable of one path is listed as `"path#2"`.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_packed_rates")

    def adapted_tensors(self) -> list[str]:
        """The paths of the tensors with layer adaptation, as `layerwise_rates` names them, in the model's order.

        A rate of 1 does not tell: it may also be the cap's, or that of a zero norm.

        Raises:
            RuntimeError: Before the optimizer is built.
        """
        if not self.built:
            raise RuntimeError(f"{self.name} is not built yet: train first, or call build(model.trainable_variables).")
        return [label for label, adapted in zip(self._labels(), self._adapted, strict=True) if adapted]

    def gradient_norms(self) -> dict[str, float]:
        """The gradient norms the rates of the last step were made from.

        Returns:
            `{variable path: norm}`, in the unit of the unscaled mean-loss gradient, for every tensor with
            layer adaptation updated in that step, and for excluded tensors whose norm was handed over.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_packed_norms")

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
            "momentum": self.momentum,
            "eta": self.eta,
            "weight_decay_rate": self.weight_decay_rate,
            "nesterov": self.nesterov,
            "classic_momentum": self.classic_momentum,
            "epsilon": self.epsilon,
            "max_rate": self.max_rate,
            "jit_compile": self.jit_compile,
            "exclude_from_layer_adaptation": self._adaptation_exclusion.to_config(),
            "exclude_from_weight_decay": self._decay_exclusion.to_config(),
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
            rows = [(ABSENT, ABSENT)] * len(self._adapted)
            norms = None if norms is None else tf.cast(norms, tf.float32)  # reduced in the gradients' dtype
            norm_of = [None] * len(rows) if norms is None else tf.unstack(norms)
            for gradient, variable in zip(gradients, variables, strict=True):
                index = self._get_variable_index(variable)
                norm = norm_of[index] if self._adapted[index] else None
                rows[index] = self.update_step(gradient, variable, learning_rate, norm)
            self.assign(self._packed_rates, tf.stack([tf.cast(rate, tf.float32) for rate, _ in rows]))
            if norms is None:
                norms = tf.stack([tf.cast(norm, tf.float32) for _, norm in rows])
            self.assign(self._packed_norms, norms)
            if self._keeps_batch_norms:
                whole = [ABSENT] * len(rows)
                for gradient, variable in zip(gradients, variables, strict=True):
                    whole[self._get_variable_index(variable)] = fused.l2_norm(tf.cast(gradient, tf.float32))
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

    def _labels(self) -> list[str]:
        counts: dict[str, int] = {}
        labels = []
        for variable in self._trainable_variables:
            path = variable_path(variable)
            counts[path] = counts.get(path, 0) + 1
            labels.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
        return labels

    def _read(self, packed: str) -> dict[str, float]:
        if not self.built or int(self.iterations.numpy()) == 0:
            raise RuntimeError(f"{self.name} has not taken a step yet: train first, then ask for rates and norms.")
        values = getattr(self, packed).numpy().tolist()
        # Written so that NaN, the sign of a broken step, is kept.
        return {label: value for label, value in zip(self._labels(), values, strict=True) if not value < 0}


def _native(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _densify(gradient: Any, variable: Any) -> Any:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _require(condition: bool, argument: str, value: Any, remedy: str) -> None:
    if not condition:
        raise ValueError(f"`{argument}` must be {remedy}; received {argument}={value!r}.")
