"""LARS, layer-wise adaptive rate scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tf_largebatch.optimizers.base import LayerwiseOptimizer


@keras.saving.register_keras_serializable(package="tf_largebatch")
class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: each tensor's rate follows the ratio of weight to gradient norm.

    For each trainable tensor `w` with gradient `grad` (clipped if asked, summed over replicas, averaged over
    accumulated micro-batches):

        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (||g|| + epsilon), max_rate)      1 for excluded tensors

        classic momentum:   v <- momentum * v + learning_rate * rate * g ;   w <- w - v
        popular momentum:   v <- momentum * v + g ;                          w <- w - learning_rate * rate * v

    With `nesterov` the last step becomes `w <- w - (momentum * v + learning_rate * rate * g)` and
    `w <- w - learning_rate * rate * (g + momentum * v)`. A tensor has rate 0 in a step in which `||g||`
    is 0, and with popular momentum also where `||grad||` is: classic momentum then moves on by the velocity it has,
    popular momentum stands still. While its weights are all 0 it has rate 1, or `max_rate` if that is lower, so that
    zero-initialised weights start to move. A NaN or infinite norm makes the rate and the update NaN.
    Norms are Euclidean; they, the rates and the update are computed in float32 at least.

    Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888,
    algorithm 1; the choice of momentum is that of TensorFlow's implementations.

    Args:
        learning_rate: Number of 0 or more, `keras.optimizers.schedules.LearningRateSchedule`, or callable
            without arguments.
        momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more. (Keras's decoupled `weight_decay`
            is not offered.)
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm, in its unit, 0 or more.
        max_rate: Cap on the rate of adapted tensors, above 0, or None for no cap.
        exclude_from_layer_adaptation: Tensors that keep the plain learning rate: one, or a list, of patterns
            (`re.search` on the variable's path), variables, and predicates of a variable. By default
            tensors of fewer than two dimensions (biases, normalisation); `[]` for none. A pattern should
            not name the model itself: Keras leaves that out of the paths of a model it loads.
        exclude_from_weight_decay: Tensors without weight decay, said in the same way, with the same default.
        jit_compile: Whether XLA compiles the update of all tensors into one program. For GPUs under
            `MirroredStrategy`, where Keras cannot compile the whole step; a step that is compiled anyway, and
            a CPU, whose own kernels are faster, gain nothing.
        clipnorm: Each gradient is clipped to this norm, before decay.
        clipvalue: Each gradient's entries are clipped to this magnitude, before decay.
        global_clipnorm: All gradients are clipped together to this norm, before decay.
        use_ema: Whether to keep an exponential moving average of the weights.
        ema_momentum: Its momentum.
        ema_overwrite_frequency: Steps after which the average overwrites the weights.
        loss_scale_factor: Fixed loss scale; gradients are divided by it.
        gradient_accumulation_steps: Micro-batches to an update, 2 or more. Learning-rate schedules count
            micro-batches.
        name: Name of the optimizer, `"lars"` by default.

    Raises:
        ValueError: If an argument is outside its range, and when the optimizer is built if a pattern or
            variable of an `exclude_*` argument matches no trained variable.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> optimizer = LARS(learning_rate=1.0, momentum=0.9, weight_decay_rate=1e-4)
        >>> model.compile(optimizer=optimizer, loss="mse")
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.01,
        momentum: float = 0.9,
        eta: float = 0.001,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = None,
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
            jit_compile=jit_compile,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
