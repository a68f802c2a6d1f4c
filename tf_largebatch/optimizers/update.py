"""The update that LARS and CLARS share in both Keras worlds: arguments, one tensor's step, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.core import momentum as momentum_steps
from tf_largebatch.core import rates
from tf_largebatch.core.exclusions import Exclusion
from tf_largebatch.core.paths import variable_path
from tf_largebatch.optimizers import update_kernels

# In the packed variables: this tensor was not updated, or has no norm. No rate or norm is negative.
ABSENT = -1.0


class LayerwiseUpdate:
    """Mixed into an optimizer of Keras 3 or of tf_keras, which keeps the variables and is asked for the rest."""

    # What the host has.
    name: Any
    built: Any
    iterations: Any
    assign: Any
    assign_sub: Any
    _get_variable_index: Any
    _trainable_variables: Any
    _velocities: Any

    def _set_arguments(
        self,
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
    ) -> None:
        require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1, for example 0.9")
        require(0 < eta < math.inf, "eta", eta, "above 0, for example 0.001")
        require(0 <= epsilon < math.inf, "epsilon", epsilon, "0 or more, for example 1e-6")
        require(0 <= weight_decay_rate < math.inf, "weight_decay_rate", weight_decay_rate, "0 or more")
        if max_rate is not None:
            require(max_rate > 0, "max_rate", max_rate, "above 0, or None for no cap")
        if nesterov and not momentum:
            raise ValueError("`nesterov=True` needs a `momentum` above 0, for example 0.9; received momentum=0.")
        self.momentum = float(momentum)
        self.eta = float(eta)
        self.weight_decay_rate = float(weight_decay_rate)
        self.nesterov = bool(nesterov)
        self.classic_momentum = bool(classic_momentum)
        self.epsilon = float(epsilon)
        self.max_rate = None if max_rate is None else float(max_rate)
        self._adaptation_exclusion = Exclusion("exclude_from_layer_adaptation", exclude_from_layer_adaptation)
        self._decay_exclusion = Exclusion("exclude_from_weight_decay", exclude_from_weight_decay)

    def _arguments(self) -> dict[str, Any]:
        """The arguments of `_set_arguments`, as JSON types."""
        return {
            "momentum": self.momentum,
            "eta": self.eta,
            "weight_decay_rate": self.weight_decay_rate,
            "nesterov": self.nesterov,
            "classic_momentum": self.classic_momentum,
            "epsilon": self.epsilon,
            "max_rate": self.max_rate,
            "exclude_from_layer_adaptation": self._adaptation_exclusion.to_config(),
            "exclude_from_weight_decay": self._decay_exclusion.to_config(),
        }

    def _select(self, variables: Sequence[Any]) -> None:
        """Decides which variables are adapted and decayed."""
        self._adapted = tuple(not excluded for excluded in self._adaptation_exclusion.select(variables))
        self._decayed = tuple(not excluded for excluded in self._decay_exclusion.select(variables))

    def _update_all(
        self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any, norms: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates the variables and returns the packed rates and norms, [K] float32; `norms` is [K] or None."""
        rows = [(ABSENT, ABSENT)] * len(self._adapted)
        norm_of = [None] * len(rows) if norms is None else tf.unstack(norms)
        for gradient, variable in zip(gradients, variables, strict=True):
            index = self._get_variable_index(variable)
            norm = norm_of[index] if self._adapted[index] else None
            rows[index] = self.update_step(gradient, variable, learning_rate, norm)
        packed = tf.stack([tf.cast(rate, tf.float32) for rate, _ in rows])
        return packed, tf.stack([tf.cast(norm, tf.float32) for _, norm in rows]) if norms is None else norms

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
            fast and not self.nesterov and self.momentum >= update_kernels.SMALLEST_MOMENTUM_TO_DECAY_BY
        ) and not (self._adapted[index] and gradient_norm is None)
        undecayed = gradient
        if decay and not through_velocity:
            gradient = gradient + decay * weight
        rate, norm = 1.0, ABSENT
        if self._adapted[index]:
            norm = update_kernels.l2_norm(gradient) if gradient_norm is None else tf.cast(gradient_norm, dtype)
            if decay and gradient_norm is None and self.momentum and not self.classic_momentum:
                # Else the rate of a step without gradient would be eta / decay, and that of the whole velocity.
                norm = tf.where(update_kernels.l2_norm(undecayed) == 0, tf.zeros_like(norm), norm)
            rate = rates.layerwise_rate(update_kernels.l2_norm(weight), norm, self.eta, self.epsilon, self.max_rate)
            step_size = step_size * rate
        velocity = self._velocities[index] if self.momentum else None
        if decay and through_velocity:
            factor = -step_size * decay if self.classic_momentum else decay
            update_kernels.decay_velocity(_native(velocity), weight, factor, self.momentum)
        step = self._fused_step if fast else self._rounded_step
        step(variable, velocity, gradient, step_size)
        return rate, norm

    def _fused_step(self, variable: Any, velocity: Any, gradient: tf.Tensor, step_size: tf.Tensor) -> None:
        step = update_kernels.classic_step if self.classic_momentum else update_kernels.popular_step
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


def densify(gradient: Any, variable: Any) -> Any:
    """The gradient as a dense tensor, repeated indices added up."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def require(condition: bool, argument: str, value: Any, remedy: str) -> None:
    """Raises ValueError with the argument, its value and what it must be."""
    if not condition:
        raise ValueError(f"`{argument}` must be {remedy}; received {argument}={value!r}.")
