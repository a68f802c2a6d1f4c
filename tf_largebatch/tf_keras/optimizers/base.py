"""The base of the layer-wise optimizers of tf_keras, which run the update of the Keras 3 ones.

The base class is `tf_keras.optimizers.legacy.Optimizer`: Model Garden's `ema:` and its loss scaling wrap no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tf_largebatch import check
from tf_largebatch.backend.tensorflow import update_kernels
from tf_largebatch.core import defaults
from tf_largebatch.optimizers.arguments import checked_learning_rate, optional_number, with_shared_texts
from tf_largebatch.optimizers.update import ABSENT, LayerwiseUpdate
from tf_largebatch.tf_keras.keras_internals import variable_key

Pair = tuple[Any, Any]


@with_shared_texts
class LayerwiseOptimizer(LayerwiseUpdate, tf_keras.optimizers.legacy.Optimizer):
    """SGD with momentum whose learning rate is multiplied, tensor by tensor, by a layer-wise rate.

    As `tf_largebatch.optimizers.base.LayerwiseOptimizer`: a subclass defines `denominator`.

    Args:
        learning_rate: Number of 0 or more, `tf_keras` learning-rate schedule, or callable without arguments.
        {{layerwise_arguments}}
        {{tf_keras_arguments}}
        name: Name of the optimizer, by default the class's.
    """

    _HAS_AGGREGATE_GRAD = True  # tf_keras asks: apply_gradients takes experimental_aggregate_gradients

    def __init__(
        self,
        learning_rate: float
        | tf_keras.optimizers.schedules.LearningRateSchedule
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
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_aggregator: Callable[[list[Pair]], list[Pair]] | None = None,
        gradient_transformers: Sequence[Callable[[list[Pair]], list[Pair]]] | None = None,
        name: str | None = None,
    ) -> None:
        check.require(
            not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule),
            "learning_rate",
            learning_rate,
            "a schedule of tf_keras.optimizers.schedules or official.modeling.optimization",
            "an optimizer of tf_keras cannot call a schedule of Keras 3",
        )
        check.require(name is None or isinstance(name, str), "name", name, "a text, or None")
        super().__init__(
            name,
            gradient_aggregator=gradient_aggregator,
            gradient_transformers=gradient_transformers,
            clipnorm=optional_number("clipnorm", check.plain(clipnorm)),
            clipvalue=optional_number("clipvalue", check.plain(clipvalue)),
            global_clipnorm=optional_number("global_clipnorm", check.plain(global_clipnorm)),
        )
        self._set_hyper("learning_rate", checked_learning_rate(learning_rate))
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
        self._trainable_variables: list[Any] = []
        self._index: dict[Any, int] = {}
        self._velocities: dict[int, Any] = {}
        self._packed_rates: Any = None
        self._packed_norms: Any = None

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return self._name

    @property
    def built(self) -> bool:
        """Whether the optimizer knows the variables it trains."""
        return bool(self._trainable_variables)

    def build(self, variables: Sequence[Any]) -> None:
        """Selects among the variables and creates one packed float32 variable each for K rates and K norms.

        The first `apply_gradients` calls it.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them, or the
                optimizer was built without one of them.
        """
        if self.built:
            new = [variable.name for variable in variables if variable_key(variable) not in self._index]
            if new:
                raise ValueError(
                    f"{self.name} trains the {len(self._trainable_variables)} variables of its first step, and {new} "
                    "are none of them: create a new optimizer after layers were added or unfrozen."
                )
            return
        self._select(variables)
        self._trainable_variables = list(variables)
        self._index = {variable_key(variable): index for index, variable in enumerate(variables)}
        with self._distribution_strategy_scope():
            self._packed_rates = self._add_packed_variable("layerwise_rates")
            self._packed_norms = self._add_packed_variable("gradient_norms")

    def apply_gradients(
        self,
        grads_and_vars: Sequence[Pair],
        name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Any:
        """Updates the variables, see `tf_keras.optimizers.legacy.Optimizer.apply_gradients`.

        Sparse gradients (`tf.IndexedSlices`) are made dense first, which adds up repeated indices: norms, clipping
        and momentum are those of the whole tensor.

        Args:
            grads_and_vars: Pairs of a gradient, None to skip the variable, and a variable.
            name: Name of the operation.
            experimental_aggregate_gradients: Whether the replicas' gradients are still to be summed.
        """
        pairs = self._prepared(grads_and_vars)
        return super().apply_gradients(pairs, name, experimental_aggregate_gradients)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as JSON types; variables become their paths. Functions on gradients are left out.

        Raises:
            ValueError: If an `exclude_*` argument holds a predicate that is not registered with
                `keras.saving.register_keras_serializable`.
        """
        learning_rate = self._serialize_hyperparameter("learning_rate")
        return {
            "name": self._name,
            "learning_rate": learning_rate if isinstance(learning_rate, dict) else float(learning_rate),
            **self._arguments(),
            "clipnorm": self.clipnorm,
            "clipvalue": self.clipvalue,
            "global_clipnorm": self.global_clipnorm,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LayerwiseOptimizer:
        """Returns an optimizer from `get_config()`, without state.

        Args:
            config: The configuration.
            custom_objects: Names of custom schedules and predicates, and their classes or functions.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            return super().from_config(dict(config), custom_objects)

    def assign(self, variable: Any, value: Any) -> None:
        """Assigns a value, in the update's dtype, to a variable; the update calls it in both worlds."""
        variable.assign(tf.cast(value, variable.dtype))

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtracts a value, in the update's dtype, from a variable; the update calls it in both worlds."""
        variable.assign_sub(tf.cast(value, variable.dtype))

    def _get_variable_index(self, variable: Any) -> int:
        return self._index[variable_key(variable)]

    def _index_if_known(self, variable: Any) -> int | None:
        return self._index.get(variable_key(variable))

    def _add_packed_variable(self, name: str) -> Any:
        return self.add_weight(
            name,
            shape=(len(self._trainable_variables),),
            dtype=tf.float32,
            initializer=tf_keras.initializers.Constant(ABSENT),
            trainable=False,
        )

    def _prepared(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        """Returns the pairs with dense gradients, after building the optimizer for them."""
        pairs = [(update_kernels.dense(gradient, variable), variable) for gradient, variable in grads_and_vars]
        with tf.init_scope():
            self.build([variable for _, variable in pairs if not self._is_packed_norms(variable)])
        return pairs

    def _create_slots(self, var_list: Sequence[Any]) -> None:
        variables = [variable for variable in var_list if not self._is_packed_norms(variable)]
        self.build(variables)
        if self.momentum:
            for variable in variables:
                self._velocities[self._get_variable_index(variable)] = self.add_slot(variable, "velocity")

    def _prepare(self, var_list: Sequence[Any]) -> dict[str, Any]:
        # In float32 for every variable: a schedule in float16 counts no further than step 65,504.
        return {"learning_rate": tf.identity(self._decayed_lr(tf.float32))}

    def _aggregate_gradients(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        # LossScaleOptimizer calls this before it calls apply_gradients.
        return super()._aggregate_gradients(self._prepared(grads_and_vars))

    def _transform_gradients(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        pairs, norms = self._split_off_norms(grads_and_vars)
        return [*super()._transform_gradients(pairs), *norms]

    def _is_packed_norms(self, variable: Any) -> bool:
        return self._packed_norms is not None and variable_key(variable) == variable_key(self._packed_norms)

    def _split_off_norms(self, grads_and_vars: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Returns the pairs of gradient and variable, and the one pair of K norms and their variable if there is one.

        A subclass whose norms come with the gradients adds that pair before the all-reduce, so that it travels with
        them through tf_keras and any wrapper.
        """
        pairs = list(grads_and_vars)
        norms = [pair for pair in pairs if self._is_packed_norms(pair[1])]
        return [pair for pair in pairs if not self._is_packed_norms(pair[1])], norms

    def _distributed_apply(
        self, distribution: Any, grads_and_vars: Sequence[Pair], apply_state: dict[str, Any], name: str | None
    ) -> Any:
        pairs, norms_pair = self._split_off_norms(grads_and_vars)
        norms = norms_pair[0][0] if norms_pair else None
        variables = [variable for _, variable in pairs]

        def update_replica(packed_rates: Any, learning_rate: Any, norms: Any, gradients: list[Any]) -> None:
            new_rates, new_norms = self._update_all(gradients, variables, learning_rate, norms)
            for variable in variables:
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))
            packed_rates.assign(new_rates)
            self._packed_norms.assign(new_norms)

        # One update context for all variables, where tf_keras has one for each: what an update returns comes back
        # wrapped differently by each strategy, so rates have to be packed where they are made.
        gradients = [gradient for gradient, _ in pairs]
        with tf.name_scope(name or self._name):
            distribution.extended.update(
                self._packed_rates,
                update_replica,
                args=(apply_state["learning_rate"], norms, gradients),
                group=False,
            )
            return self.iterations.assign_add(1, read_value=False)
