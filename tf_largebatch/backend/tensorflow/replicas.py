"""The replicas of `tf.distribute` that run the present step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def have_parts_of_the_batch() -> bool:
    """Returns whether several replicas each see a part of the batch."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def number_of_this_replica() -> Any:
    """Returns the number of the replica that runs, an int or an int32 tensor; 0 outside of a replica."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group
