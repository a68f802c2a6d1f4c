"""Every private attribute or method of Keras and tf.distribute that this package relies on, sorted by topic.

Each has its reason here and a test in tests/test_keras_internals.py that fails when a new version changes it.
"""

from __future__ import annotations

from typing import Any

import keras

# Optimizers.


def learning_rate_schedule(optimizer: Any) -> Any:
    """Returns the schedule of a Keras optimizer; None for a constant learning rate.

    `_learning_rate`: the public `learning_rate` gives the value for the coming update, and a record needs that of the
    last one.
    """
    schedule = getattr(optimizer, "_learning_rate", None)
    return schedule if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) else None


# Outputs.


def logits_kept_by_keras(output: Any) -> Any:
    """Returns the logits behind an output of `keras.activations.softmax` or `sigmoid`; None for other tensors.

    `_keras_logits`: Keras's losses read it so that a confident classifier's cross-entropy does not round to 0. Attacks
    need it for the same reason. There is no public way from an eager tensor to the logits it was made from.
    """
    return getattr(output, "_keras_logits", None)


# Strategies.


def leave_strategy(graph: Any) -> None:
    """Makes a graph under construction one that no strategy knows: its operations belong to no replica.

    `_distribution_strategy_stack`: the structure check of per-example norms traces a forward pass on one replica alone,
    in which a synchronized batch normalization would wait for the other replicas.
    """
    graph._distribution_strategy_stack = []
