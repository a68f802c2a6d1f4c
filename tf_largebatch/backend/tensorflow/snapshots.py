"""How weights are copied from one variable to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf


def read(variable: Any) -> Any:
    """Returns the present value of a Keras variable as a tensor."""
    return tf.convert_to_tensor(variable.value)


def push(pairs: Iterable[tuple[Any, Any]], step: Any) -> None:
    """Copies each source into its target, in this order, and adds 1 to the step.

    Every replica writes its own variables with its own values: nothing is sent between them.

    Args:
        pairs: Keras variables, target and source.
        step: An integer variable.
    """

    def on_all_replicas(strategy: tf.distribute.Strategy) -> None:
        for target, source in pairs:
            strategy.extended.update(target.value, _assign, args=(source.value,), group=False)
        strategy.extended.update(step.value, _increment, group=False)

    _in_cross_replica_context(on_all_replicas)


def copy(target: Any, source: Any) -> None:
    """Copies the value of one Keras variable into another."""
    target.assign(source)


def _assign(target: tf.Variable, source: tf.Variable) -> tf.Operation:
    return target.assign(tf.convert_to_tensor(source), read_value=False)


def _increment(step: tf.Variable) -> tf.Operation:
    return step.assign_add(tf.ones((), step.dtype), read_value=False)


def _in_cross_replica_context(function: Callable[[tf.distribute.Strategy], None]) -> None:
    context = tf.distribute.get_replica_context()
    if context is None:
        function(tf.distribute.get_strategy())
    else:
        context.merge_call(function)
