"""The update that all layer-wise optimizers share in both Keras worlds, and what they report of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.core import momentum as momentum_steps
from tf_largebatch.core import rates
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.optimizers import update_kernels
from tf_largebatch.optimizers.arguments import LayerwiseArguments, may_differ

# In the packed variables: this tensor was not updated, or has no norm. No rate or norm is negative.
ABSENT = -1.0


class LayerwiseUpdate(LayerwiseArguments):
    """Mixed into an optimizer of Keras 3 or of tf_keras, which keeps the variables and calls `_update_all`.

    A layer-wise optimizer says what its rate divides by: it defines `denominator`.
    """

    # What the optimizer that this is mixed into has.
    name: Any
    built: Any
    iterations: Any
    assign: Any
    assign_sub: Any
    _get_variable_index: Any
    _trainable_variables: Any
    _velocities: Any

    def denominator(self, gradient: Any, undecayed: Any) -> Any:
        """Returns the norm that the rate of one tensor divides by.

        Not called for a tensor whose norm arrives together with the gradients, as CLARS's does.

        Args:
            gradient: The gradient with weight decay, float32 or float64.
            undecayed: The gradient without weight decay; the same object where there is none.

        Returns:
            Scalar of the same dtype. At 0 the tensor's rate is 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must define denominator(gradient, undecayed).")

    def measured_denominator(self, norm: Any, gradient: Any) -> Any:
        """Returns what the rate of one tensor divides by, given the norm that arrived with the gradients.

        Args:
            norm: Scalar, float32 or float64.
            gradient: The gradient without weight decay, of the same dtype.
        """
        return norm

    def _update_all(
        self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any, norms: Any
    ) -> tuple[Any, Any]:
        """Updates the variables.

        Args:
            gradients: One dense gradient a variable, as for `update_step`.
            variables: The variables to update, some or all of those the optimizer was built with.
            learning_rate: Scalar.
            norms: Float32 [K], the norms to divide by, `ABSENT` where there is none; None to call `denominator`.

        Returns:
            The rates and the norms, float32 [K], `ABSENT` for variables that are not updated.
        """
        rows = [(ABSENT, ABSENT)] * len(self._adapted)
        norm_of = [None] * len(rows) if norms is None else ops.unstack(norms)
        for gradient, variable in zip(gradients, variables, strict=True):
            index = self._get_variable_index(variable)
            norm = norm_of[index] if self._adapted[index] else None
            rows[index] = self.update_step(gradient, variable, learning_rate, norm)
        packed = [ops.stack([ops.cast(value, "float32") for value in column]) for column in zip(*rows, strict=True)]
        return packed[0], packed[1] if norms is None else norms

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any, gradient_norm: Any = None
    ) -> tuple[Any, Any]:
        """Updates one variable and its velocity.

        Args:
            gradient: Dense gradient, summed over replicas and clipped, without weight decay.
            variable: The variable.
            learning_rate: Scalar.
            gradient_norm: Scalar float32, the norm that the rate divides by; None to call `denominator`.

        Returns:
            The layer-wise rate and the norm that it divides by, scalars; `unadapted_rate_factor` and -1 if excluded.
        """
        index = self._get_variable_index(variable)
        dtype = rates.compute_dtype(variable.dtype)
        kernels = update_kernels.takes(keras.backend.standardize_dtype(variable.dtype))
        weight = ops.cast(variable, dtype)
        undecayed = gradient = ops.cast(gradient, dtype)
        step_size = ops.cast(learning_rate, dtype)
        decay = self.weight_decay_rate if self._decayed[index] else 0.0
        needs_decayed = self._adapted[index] and gradient_norm is None
        decays = may_differ(decay, 0)
        by_velocity = kernels and not needs_decayed and update_kernels.can_decay_velocity(self.momentum, self.nesterov)
        if decays and not by_velocity:
            gradient = gradient + decay * weight
        rate, norm = self.unadapted_rate_factor, ABSENT
        if self._adapted[index]:
            if gradient_norm is None:
                norm = self.denominator(gradient, undecayed)
            else:
                norm = self.measured_denominator(ops.cast(gradient_norm, dtype), undecayed)
            rate = rates.layerwise_rate(update_kernels.l2_norm(weight), norm, self.eta, self.epsilon, self.max_rate)
        if may_differ(rate, 1):
            step_size = step_size * rate
        velocity = self._velocities[index] if may_differ(self.momentum, 0) else None
        if decays and by_velocity:
            factor = -step_size * decay if self.classic_momentum else decay
            update_kernels.decay_velocity(velocity, weight, factor, self.momentum)
        step = self._kernel_step if kernels else self._plain_step
        step(variable, velocity, gradient, step_size)
        return rate, norm

    def _kernel_step(self, variable: Any, velocity: Any, gradient: Any, step_size: Any) -> None:
        step = update_kernels.classic_step if self.classic_momentum else update_kernels.popular_step
        step(variable, velocity, gradient, step_size, self.momentum, self.nesterov)

    def _plain_step(self, variable: Any, velocity: Any, gradient: Any, step_size: Any) -> None:
        """Does the same with ordinary operations, also for variables of fewer bits than the update is computed in."""
        decrement = step_size * gradient
        if velocity is not None:
            step = momentum_steps.classic_step if self.classic_momentum else momentum_steps.popular_step
            sign = -1.0 if self.classic_momentum else 1.0  # classic velocities are stored as Keras's SGD stores them
            old = sign * ops.cast(velocity, gradient.dtype)
            new, decrement = step(gradient, old, step_size, self.momentum, self.nesterov)
            self.assign(velocity, sign * new)
        self.assign_sub(variable, decrement)

    def layerwise_rates(self) -> dict[str, float]:
        """Returns the layer-wise rates of the last step.

        Returns:
            `{variable path: rate}` for every tensor updated in that step; excluded tensors have the rate
            `unadapted_rate_factor`. A second variable of one path is listed as `"path#2"`.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_packed_rates")

    def adapted_tensors(self) -> list[str]:
        """Returns the paths of the tensors with layer adaptation, named and ordered as in `layerwise_rates`.

        A rate of 1 does not tell: it may also be the cap, or that of a tensor whose weights are all 0.

        Raises:
            RuntimeError: Before the optimizer is built.
        """
        if not self.built:
            raise RuntimeError(f"{self.name} is not built yet: train first, or call build(model.trainable_variables).")
        labels = variable_labels(self._trainable_variables)
        return [label for label, adapted in zip(labels, self._adapted, strict=True) if adapted]

    def gradient_norms(self) -> dict[str, float]:
        """Returns the gradient norms that the rates of the last step divided by; CLARS's are `s`.

        Returns:
            `{variable path: norm}`, in the unit of the unscaled mean-loss gradient, for every tensor with
            layer adaptation updated in that step, and for excluded tensors whose norm was handed over.

        Raises:
            RuntimeError: Before the first step.
        """
        return self._read("_packed_norms")

    def _read(self, packed: str) -> dict[str, float]:
        if not self.built or int(ops.convert_to_numpy(self.iterations)) == 0:
            raise RuntimeError(f"{self.name} has not taken a step yet: train first, then ask for rates and norms.")
        values = ops.convert_to_numpy(getattr(self, packed)).tolist()
        labels = variable_labels(self._trainable_variables)
        # Written so that NaN, the sign of a broken step, is kept.
        return {label: value for label, value in zip(labels, values, strict=True) if not value < 0}
