"""LARS for tf_keras."""

from __future__ import annotations

import tf_keras

from tf_largebatch.optimizers.arguments import with_shared_texts
from tf_largebatch.optimizers.lars import GradientNormDenominator
from tf_largebatch.tf_keras.optimizers.base import LayerwiseOptimizer


@tf_keras.utils.register_keras_serializable(package="tf_largebatch")
@with_shared_texts
class LARS(GradientNormDenominator, LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling for tf_keras and Model Garden.

    For each trainable tensor `w` with gradient `grad` (summed over replicas, clipped if asked):

        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (||g|| + epsilon), max_rate)      unadapted_rate_factor for excluded tensors

        {{update}}

    {{numerics}}

    A tensor has rate 0 in a step in which `||g||` is 0, and with popular momentum also where `||grad||` is.
    {{zero_norms}}

    Model Garden's own LARS differs: its popular form takes the rate from the velocity's norm, it has no epsilon and no
    cap, an empty list of exclusions means "the other list", and its configuration loses both lists.

    {{lars_source}}

    Args:
        learning_rate: Number of 0 or more, `tf_keras` learning-rate schedule, or callable without arguments.
        {{layerwise_arguments}}
        {{tf_keras_arguments}}
        name: Name of the optimizer, `"lars"` by default.

    Raises:
        ValueError: If an argument is outside its range, and in the first step if a pattern or variable of an
            `exclude_*` argument matches no trained variable.
    """
