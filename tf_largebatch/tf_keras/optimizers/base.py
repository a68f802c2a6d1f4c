"""What LARS and CLARS share in tf_keras: the host's side of the update. The update itself is that of Keras 3.

The base is `tf_keras.optimizers.legacy.Optimizer`: Model Garden's `ema:` and its loss scaling wrap no other.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tf_largebatch.optimizers.update import ABSENT, LayerwiseUpdate, densify, require

Pair = tuple[Any, Any]


class LayerwiseOptimizer(LayerwiseUpdate, tf_keras.optimizers.legacy.Optimizer):
    """SGD with momentum whose learning rate is multiplied, tensor by tensor, by a layer-wise rate.

    The arguments are those of `LARS`.
    """

    _HAS_AGGREGATE_GRAD = True  # the host asks: apply_gradients takes experimental_aggregate_gradients

    def __init__(
        self,
        learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule | Callable[[], Any],
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
        clipnorm: float | None,
        clipvalue: float | None,
        global_clipnorm: float | None,
        gradient_aggregator: Callable[[list[Pair]], list[Pair]] | None,
        gradient_transformers: Sequence[Callable[[list[Pair]], list[Pair]]] | None,
        name: str | None,
    ) -> None:
        _check_learning_rate(learning_rate)
        super().__init__(
            name,
            gradient_aggregator=gradient_aggregator,
            gradient_transformers=gradient_transformers,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
        )
        self._set_hyper("learning_rate", learning_rate)
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
        self._trainable_variables: list[Any] = []
        self._index: dict[Any, int] = {}
        self._velocities: dict[int, Any] = {}
        self._packed_rates = self._packed_norms = None

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

        Done by the first `apply_gradients`.

        Args:
            variables: The K variables to train.

        Raises:
            ValueError: If a pattern or variable given to an `exclude_*` argument matches none of them, or the
                optimizer was built without one of them.
        """
        if self.built:
            new = [variable.name for variable in variables if _key(variable) not in self._index]
            if new:
                raise ValueError(
                    f"{self.name} trains the variables of its first step, and {new} are none of them: create a new "
                    "optimizer for other variables."
                )
            return
        self._select(variables)
        self._trainable_variables = list(variables)
        self._index = {_key(variable): index for index, variable in enumerate(variables)}
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
        """The arguments, as JSON types; variables become their paths. Functions on gradients are left out.

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
        """An optimizer from `get_config()`, without state.

        Args:
            config: The configuration.
            custom_objects: Names of custom schedules and predicates, and their classes or functions.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            return super().from_config(dict(config), custom_objects)

    def assign(self, variable: Any, value: Any) -> None:
        """Assigns a value, in the update's dtype, to a variable: what the update calls in both worlds."""
        variable.assign(tf.cast(value, variable.dtype))

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtracts a value, in the update's dtype, from a variable: what the update calls in both worlds."""
        variable.assign_sub(tf.cast(value, variable.dtype))

    def _get_variable_index(self, variable: Any) -> int:
        return self._index[_key(variable)]

    def _index_if_known(self, variable: Any) -> int | None:
        return self._index.get(_key(variable))

    def _add_packed_variable(self, name: str) -> Any:
        return self.add_weight(
            name,
            shape=(len(self._trainable_variables),),
            dtype=tf.float32,
            initializer=tf_keras.initializers.Constant(ABSENT),
            trainable=False,
        )

    def _prepared(self, grads_and_vars: Sequence[Pair]) -> list[Pair]:
        """The pairs with dense gradients, of an optimizer that is built for them."""
        pairs = [(densify(gradient, variable), variable) for gradient, variable in grads_and_vars]
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
        return self._packed_norms is not None and _key(variable) == _key(self._packed_norms)

    def _split_off_norms(self, grads_and_vars: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        """The pairs of gradient and variable, and the one pair of K norms and their variable if there is one.

        A subclass that adapts to other norms than the gradients' adds that pair before the all-reduce, so that it
        travels with the gradients through the host, whoever wraps the optimizer.
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
            rows_of_rates, rows_of_norms = self._update_all(gradients, variables, learning_rate, norms)
            for variable in variables:
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))
            packed_rates.assign(rows_of_rates)
            self._packed_norms.assign(rows_of_norms)

        # One update context for all variables, not the host's one a variable: what an update returns comes back
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


def _check_learning_rate(learning_rate: Any) -> None:
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(
            f"`learning_rate` is a schedule of Keras 3, which an optimizer of tf_keras cannot call: pass one of "
            f"tf_keras.optimizers.schedules or official.modeling.optimization; received {learning_rate!r}."
        )
    if isinstance(learning_rate, numbers.Real):
        require(learning_rate >= 0, "learning_rate", learning_rate, "0 or more")


def _key(variable: Any) -> Any:
    """What identifies a variable: the same for a replica's component, the whole and their autocast wrapper."""
    container = getattr(variable, "_distributed_container", None)
    whole = container() if container is not None else None
    return (variable if whole is None else whole)._unique_id
