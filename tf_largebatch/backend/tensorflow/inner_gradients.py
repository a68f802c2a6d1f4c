"""Gradients that a model takes inside its own forward pass: forces, gradient penalties, saliency maps.

A rule lets its layer compute with private values of the variables. The backward pass of an inner gradient uses these
private values once more, and no rule records that use. Where the loss depends on an inner gradient, the recorded uses
are not all uses, and neither gradient nor norms would be right. So every recorded layer's outputs pass a guard. A
gradient that comes back through a guard before the step's own backward pass is an inner one: the guard has the step's
tape watch it, and the step is refused if the loss turns out to depend on it. Every later operation of the inner
backward pass is linear in the watched gradient, so no use of a private value there can go unnoticed.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_largebatch.keras_internals import keras_mask, set_keras_mask
from tf_largebatch.norms.recorder import inner_gradient_message


class InnerGradients:
    """Guards the layers' outputs in one forward pass.

    Args:
        tape: The step's own tape, which records the forward pass.
    """

    def __init__(self, tape: tf.GradientTape) -> None:
        self._tape = tape
        self._watched: list[tuple[str, tf.Tensor]] = []
        self._backward = False
        self._guarding = False
        self.guards: set[tf.Operation] = set()  # in a graph: the operations whose gradient is the identity's

    def guard(self, outputs: Any, layer: str) -> Any:
        """Returns the outputs of a recorded layer, nested tensors, behind a guard; masks stay with their tensors.

        Args:
            outputs: What the layer's rule returned.
            layer: The layer's path, for the message.

        Raises:
            ValueError: If a `ForwardAccumulator` follows the outputs.
        """
        flat = tf.nest.flatten(outputs)
        tensors = [t.flat_values if isinstance(t, tf.RaggedTensor) else t for t in flat]
        guarded = [i for i, t in enumerate(tensors) if isinstance(t, tf.Tensor) and _is_float(t)]
        if not guarded:
            return outputs
        graph = _graph()

        def seen(*ds: tf.Tensor) -> Any:
            if self._backward:
                return ds if len(ds) > 1 else ds[0]
            # In a graph of its own, or vectorized over rows, the gradient that the loss depends on is another tensor.
            if self._guarding or _graph() is not graph or any(_is_vectorized(d) for d in ds):
                raise ValueError(inner_gradient_message([layer]))
            watched = [tf.identity(d) for d in ds]
            for d in watched:
                self._tape.watch(d)
                self._watched.append((layer, d))
            return watched if len(watched) > 1 else watched[0]

        @tf.custom_gradient
        def identity(*ts: tf.Tensor) -> Any:
            same = [tf.identity(t) for t in ts]
            return same if len(same) > 1 else same[0], seen

        self._guarding = True  # a forward-mode derivative asks for the gradient here, while the guard is made
        try:
            behind = identity(*(tensors[i] for i in guarded))
        finally:
            self._guarding = False
        if graph is not None:
            self.guards.add(tf.nest.flatten(behind)[0].op)
        for i, t in zip(guarded, tf.nest.flatten(behind), strict=True):
            mask = keras_mask(flat[i])
            if mask is not None:
                set_keras_mask(t, mask)
            flat[i] = flat[i].with_flat_values(t) if isinstance(flat[i], tf.RaggedTensor) else t
        return tf.nest.pack_sequence_as(outputs, flat)

    def begin_backward(self) -> list[tf.Tensor]:
        """Ends the forward pass and returns the inner gradients on which the loss must not depend."""
        self._backward = True
        return [d for _, d in self._watched]

    def check(self, gradients: list[Any]) -> None:
        """Raises ValueError if the loss depends on an inner gradient.

        Args:
            gradients: Of the loss at what `begin_backward` returned.
        """
        layers = [layer for (layer, _), g in zip(self._watched, gradients, strict=True) if g is not None]
        if layers:
            raise ValueError(inner_gradient_message(sorted(set(layers))))


def _is_vectorized(d: tf.Tensor) -> bool:
    """Returns whether a gradient is traced for one row of many, by `batch_jacobian` or `vectorized_map` in a graph."""
    if tf.executing_eagerly():
        return False
    waiting, seen = [d.op], {d.op}
    while waiting:
        op = waiting.pop()
        if op.type == "PlaceholderWithDefault":  # the number of the row
            return True
        new = {t.op for t in op.inputs} - seen
        seen |= new
        waiting += new
    return False


def _is_float(t: tf.Tensor) -> bool:
    return t.dtype.is_floating


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
