"""In a graph the gradient that goes on to one layer waits for the norms of the layer before it.

TensorFlow only: the order is that of a graph's control dependencies, which JAX's programs have not.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers as L

from tf_largebatch.norms import KERAS, measure


def ancestors(op: tf.Operation, control: bool) -> set[str]:
    """The names of all operations that one depends on."""
    found, todo = set(), [op]
    while todo:
        op = todo.pop()
        before = [t.op for t in op.inputs] + (list(op.control_inputs) if control else [])
        todo += [other for other in before if other.name not in found]
        found.update(other.name for other in before)
    return found


def test_the_first_layers_norms_wait_for_those_of_the_last_but_one():
    model = keras.Sequential([keras.Input((4, 3)), *(L.Dense(3, use_bias=False) for _ in range(4))])
    x = tf.zeros([2, 4, 3])

    def step():
        target = lambda y: tf.reduce_sum(y**2)  # noqa: E731
        _, found = measure(model, lambda: model(x), target, model.trainable_variables, 2, KERAS)
        return found.squared_norms

    norms = [t.op for t in tf.function(step, autograph=False).get_concrete_function().structured_outputs]
    # A returned tensor is an identity of the norm itself.
    computed = [op.inputs[0].op.name for op in norms]
    first = norms[0]
    assert computed[2] in ancestors(first, control=True)
    assert computed[2] not in ancestors(first, control=False)
    assert computed[0] not in ancestors(norms[1], control=True)
