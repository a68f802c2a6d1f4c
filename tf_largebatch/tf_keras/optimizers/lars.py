"""LARS for tf_keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tf_keras

from tf_largebatch.tf_keras.optimizers.base import LayerwiseOptimizer


@tf_keras.utils.register_keras_serializable(package="tf_largebatch")
class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling for tf_keras and Model Garden.

    For each trainable tensor `w` with gradient `grad` (summed over replicas, clipped if asked):

        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (||g|| + epsilon), max_rate)      1 for excluded tensors

        classic momentum:   v <- momentum * v + learning_rate * rate * g ;   w <- w - v
        popular momentum:   v <- momentum * v + g ;                          w <- w - learning_rate * rate * v

    Everything else about the update is as in `tf_largebatch.LARS`, whose code it runs. Model Garden's own LARS
    differs: its popular form takes the rate from the velocity's norm, it has no epsilon and no cap, an empty list of
    exclusions means "the other list", and its configuration loses both lists.

    Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888,
    algorithm 1; the choice of momentum is that of TensorFlow's implementations.

    Args:
        learning_rate: Number of 0 or more, `tf_keras` learning-rate schedule, or callable without arguments.
        momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more.
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm, in its unit, 0 or more.
        max_rate: Cap on the rate of adapted tensors, above 0, or None for no cap.
        exclude_from_layer_adaptation: Tensors that keep the plain learning rate: one, or a list, of patterns
            (`re.search` on the variable's name without its ":0", such as "conv2d_1/kernel"), variables, and
            predicates of a variable. By default tensors of fewer than two dimensions (biases, normalisation);
            `[]` for none.
        exclude_from_weight_decay: Tensors without weight decay, said in the same way, with the same default.
        clipnorm: Each gradient is clipped to this norm, before decay.
        clipvalue: Each gradient's entries are clipped to this magnitude, before decay.
        global_clipnorm: All gradients are clipped together to this norm, before decay.
        gradient_aggregator: Replaces the sum over replicas; takes and returns pairs of gradient and variable.
        gradient_transformers: Applied to the summed pairs in place of clipping. Neither is part of the
            configuration.
        name: Name of the optimizer, `"lars"` by default.

    Raises:
        ValueError: If an argument is outside its range, and in the first step if a pattern or variable of an
            `exclude_*` argument matches no trained variable.
    """

    def __init__(
        self,
        learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.01,
        momentum: float = 0.9,
        eta: float = 0.001,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = None,
        exclude_from_layer_adaptation: Any = None,
        exclude_from_weight_decay: Any = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_aggregator: Callable[[list[Any]], list[Any]] | None = None,
        gradient_transformers: Sequence[Callable[[list[Any]], list[Any]]] | None = None,
        name: str | None = None,
    ) -> None:
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
