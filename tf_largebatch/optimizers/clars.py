"""CLARS, complete layer-wise adaptive rate scaling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.optimizers.base import LayerwiseOptimizer
from tf_largebatch.optimizers.norm_source import NormSource, check_norm_source
from tf_largebatch.optimizers.replica_local import Norms, ReplicaLocal, for_one_all_reduce
from tf_largebatch.optimizers.update import ABSENT


@keras.saving.register_keras_serializable(package="tf_largebatch")
class CLARS(NormSource, LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling: LARS with the mean norm of the *per-example* gradients.

    For each trainable tensor `w`, a batch of B examples with losses `f_i`, and the gradient `grad` of their
    mean (clipped if asked, summed over replicas, averaged over accumulated micro-batches):

        s    = (1/B) sum_i ||grad f_i(w)||
        g    = grad + weight_decay_rate * w
        rate = min(eta * ||w|| / (s + epsilon), max_rate)          1 for excluded tensors

        classic momentum:   v <- momentum * v + learning_rate * rate * g ;   w <- w - v
        popular momentum:   v <- momentum * v + g ;                          w <- w - learning_rate * rate * v

    With `nesterov` the last step becomes `w <- w - (momentum * v + learning_rate * rate * g)` and
    `w <- w - learning_rate * rate * (g + momentum * v)`. The rate is that of LARS times `||grad|| / s`, small
    where examples disagree, which is what a warmup imitates: CLARS is meant to be run without one.

    `s` is measured before clipping and without weight decay. A tensor has rate 0 in a step in which `s` is 0: classic
    momentum then moves on by the velocity it has, popular momentum stands still. While its weights are all 0 it has
    rate 1, or `max_rate` if that is lower, so that zero-initialised weights start to move. A NaN or infinite norm
    makes the rate and the update NaN. Norms are Euclidean; they, the rates and the update are computed in float32 at
    least.

    Source: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", 2020, arXiv 2002.01576 (AAAI 2021 as
    "Large Batch Optimization for Deep Learning Using New Complete Layer-Wise Adaptive Rate Scaling"). The
    printed method has neither cap nor choice of momentum; both are in the authors' code.

    Args:
        learning_rate: Number of 0 or more, `keras.optimizers.schedules.LearningRateSchedule`, or callable
            without arguments.
        momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0; the authors' code uses 0.01.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more. (Keras's decoupled `weight_decay`
            is not offered.)
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm, in its unit, 0 or more.
        max_rate: Cap on the rate of adapted tensors, above 0, or None for no cap;
            the authors' code uses 0.1.
        gradient_norms: Where `s` comes from. `"per_example"`: from the model wrapper that measures it, an
            error if it did not. `"replica"`: the norm of each separately computed gradient (each replica's,
            each accumulated micro-batch's), averaged; with one replica and no accumulation this is LARS.
            `"auto"`: per example if measured, else per replica with one warning.
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
        >>> model.compile(optimizer=CLARS(learning_rate=1.0, gradient_norms="replica"), loss="mse")

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
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any] = 0.01,
        momentum: float = 0.9,
        eta: float = 0.01,
        weight_decay_rate: float = 0.0,
        nesterov: bool = False,
        classic_momentum: bool = True,
        epsilon: float = 1e-6,
        max_rate: float | None = None,
        gradient_norms: str = "auto",
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
        check_norm_source(gradient_norms)
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
        self._set_norm_source(gradient_norms)
        self._packed_local_norms = ReplicaLocal()

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

    @contextlib.contextmanager
    def measured_gradient_norms(self, norms: Norms) -> Iterator[None]:
        """Hands over measured norms to the `apply` inside the `with` block.

        They are subject to the same rules as gradients: each replica hands over the sum over *its* examples
        of the norm of the example's contribution to the gradient of its loss, which is the mean loss over
        the global batch, so that the replicas' norms add up to `s`; both are scaled by this optimizer's
        `loss_scale_factor` if it has one; of accumulated micro-batches the mean is taken. To be called in
        replica context, where the gradients are. With `gradient_norms="replica"` a training step that works
        off micro-batches hands over the mean of *their* gradients' norms.

        Args:
            norms: `{variable path: norm}`, or a list with one norm or None for each variable the optimizer
                trains, in its order. Norms are scalar floating tensors; every tensor with layer adaptation
                that has a gradient needs one, others are welcome.

        Yields:
            Nothing.
        """
        with self._handed_norms.holding(norms):
            yield

    def get_config(self) -> dict[str, Any]:
        """The arguments, as JSON types; variables become their paths.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with Keras.
        """
        return {**super().get_config(), "gradient_norms": self._norm_source}

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        # The last point at which gradients are unscaled but not yet clipped, averaged and reduced.
        with self._packed_local_norms.holding(self._pack_norms(grads, trainable_variables)):
            super()._backend_apply_gradients(grads, trainable_variables)

    def _backend_increment_gradient_accumulators(self, grads: Sequence[Any], acc_grads: Sequence[Any]) -> None:
        norms, _ = self._packed_local_norms.get()
        super()._backend_increment_gradient_accumulators([*grads, norms], [*acc_grads, self._norm_accumulator])

    def _backend_reset_gradient_accumulators(self) -> None:
        super()._backend_reset_gradient_accumulators()
        self._norm_accumulator.assign(tf.zeros_like(self._norm_accumulator))

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        norms, known = self._packed_local_norms.get()
        if self.gradient_accumulation_steps:
            norms = (norms + self._norm_accumulator) / self.gradient_accumulation_steps
        norms = tf.where(known, norms, ABSENT)
        # One more pair for Keras's all-reduce, so that the norms travel with the gradients.
        together = for_one_all_reduce([*grads, norms])
        super()._backend_update_step(together, [*trainable_variables, self._packed_norms], learning_rate)

    def _separate_norms(self, grads_and_vars: list[tuple[Any, Any]]) -> tuple[list[tuple[Any, Any]], Any]:
        *pairs, (norms, _) = grads_and_vars
        return pairs, norms

    def _pack_norms(self, grads: Sequence[Any], variables: Sequence[Any]) -> tuple[Any, list[bool]]:
        """This replica's norms of this micro-batch, [K] float32 (0 if unknown), and which are known."""
        by_index = {self._get_variable_index(v): gradient for v, gradient in zip(variables, grads, strict=True)}
        return self._packed_norms_of(by_index, self._handed_norms.get(), self.loss_scale_factor or 1.0)
