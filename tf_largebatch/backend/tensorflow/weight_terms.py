"""Variables that the loss itself reads: terms of weights alone are allowed, uses by the examples are refused.

A weight regularizer takes part in the gradient and in no example's contribution. A loss that multiplies features with
a weight (a tied softmax, ArcFace, sampled softmax) has contributions that no rule sees. What tells them apart is the
graph: the gradient of a term of weights alone is made of variables and constants, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

# Their outputs depend on the sizes of their inputs alone.
_SIZES = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "BroadcastGradientArgs"}
# Without inputs, and the same whatever the batch.
_FIXED = {"Const", "VarHandleOp", "VariableV2", "NoOp"}
_DATA = {"IteratorGetNext", "IteratorGetNextSync", "OptionalGetValue", "MultiDeviceIteratorGetNextFromShard"}


def depends_on_examples(gradient: Any, of_examples: Iterable[tf.Tensor] = ()) -> bool:
    """Returns whether a gradient in a graph depends on anything but variables and constants.

    Args:
        gradient: A tensor or `tf.IndexedSlices` of the graph under construction.
        of_examples: Tensors that are the examples' even where these are constants of the graph.
    """
    examples = {id(t) for t in of_examples}
    waiting = [(t, t.graph) for t in _tensors([gradient])]
    seen: set[int] = set()
    while waiting:
        t, graph = waiting.pop()
        if id(t) in seen or t.dtype == tf.resource:
            continue
        seen.add(id(t))
        if id(t) in examples:
            return True
        if t.op.type == "Placeholder":
            outside = [external for external, internal in getattr(graph, "captures", ()) if internal is t]
            if not outside or not hasattr(outside[0], "op") or not hasattr(outside[0], "graph"):
                return True
            waiting.append((outside[0], outside[0].graph))
        elif t.op.type in _DATA or (not t.op.inputs and t.op.type not in _FIXED):
            return True
        elif t.op.type not in _SIZES:
            waiting += [(operand, graph) for operand in t.op.inputs]
    return False


def example_dependent(loss: Callable[[Any], tf.Tensor], output: Any, variables: Sequence[Any]) -> list[bool]:
    """Returns, in eager execution, for which variables the gradient of their reads in the loss depends on examples.

    The loss is traced once more, into a graph that is never run.

    Args:
        loss: The scalar to differentiate, of the model's output.
        output: Nested tensors.
        variables: `tf.Variable`s that the loss reads.
    """
    flat = tf.nest.flatten(output)
    places = [i for i, t in enumerate(flat) if isinstance(t, tf.Tensor)]
    found: list[bool] = []

    def trace(*tensors: tf.Tensor) -> None:
        arguments = list(flat)
        for i, t in zip(places, tensors, strict=True):
            arguments[i] = t
        with tf.GradientTape() as tape:
            target = loss(tf.nest.pack_sequence_as(output, arguments))
        gradients = tape.gradient(target, list(variables))
        found.extend(g is not None and depends_on_examples(g) for g in gradients)

    specs = [tf.TensorSpec(flat[i].shape, flat[i].dtype) for i in places]
    tf.function(trace, autograph=False).get_concrete_function(*specs)
    return found


def _tensors(gradients: Iterable[Any]) -> list[tf.Tensor]:
    parts: list[tf.Tensor] = []
    for g in gradients:
        parts += [g.values, g.indices] if isinstance(g, tf.IndexedSlices) else [g]
    return parts
