"""LARS, layer-wise adaptive rate scaling."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_largebatch.optimizers import update_kernels
from tf_largebatch.optimizers.arguments import may_differ, with_shared_texts
from tf_largebatch.optimizers.base import LayerwiseOptimizer


class GradientNormDenominator:
    """What makes an optimizer LARS, in both Keras worlds: its rate divides by the norm of the gradient."""

    momentum: float
    classic_momentum: bool

    def denominator(self, gradient: Any, undecayed: Any) -> Any:
        """Returns the norm of the gradient with weight decay.

        With popular momentum it is 0 where the gradient without decay is. Otherwise the rate of such a step would be
        `eta / weight_decay_rate`, hundreds of times the usual one, and would apply to the whole velocity.
        """
        norm = update_kernels.l2_norm(gradient)
        if gradient is undecayed or self.classic_momentum or not may_differ(self.momentum, 0):
            return norm
        return ops.where(update_kernels.l2_norm(undecayed) == 0, ops.zeros_like(norm), norm)


@keras.saving.register_keras_serializable(package="tf_largebatch")
@with_shared_texts
class LARS(GradientNormDenominator, LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: each tensor's rate follows the ratio of weight norm to gradient norm.

    For each trainable tensor `w` with gradient `grad` (clipped if asked, summed over replicas, averaged over
    accumulated micro-batches):

        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (||g|| + epsilon), max_rate)      unadapted_rate_factor for excluded tensors

        {{update}}

    {{numerics}}

    A tensor has rate 0 in a step in which `||g||` is 0, and with popular momentum also where `||grad||` is.
    {{zero_norms}}

    {{lars_source}}

    Args:
        learning_rate: Number of 0 or more, `keras.optimizers.schedules.LearningRateSchedule`, or callable
            without arguments.
        {{layerwise_arguments}}
        {{keras_arguments}}
        name: Name of the optimizer, `"lars"` by default.

    Raises:
        ValueError: If an argument is outside its range, and when the optimizer is built if a pattern or
            variable of an `exclude_*` argument matches no trained variable.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> optimizer = LARS(weight_decay_rate=1e-4)
        >>> model.compile(optimizer=optimizer, loss="mse")
    """
