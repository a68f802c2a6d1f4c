"""A pass over a batch that is worked off in equal micro-batches, one after the other on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_largebatch.model_garden.passes import Pass


def in_micro_batches(
    run: Callable[[tf.Tensor, tf.Tensor], Pass],
    images: tf.Tensor,
    targets: tf.Tensor,
    variables: list[Any],
    classes: int,
    size: int,
) -> Pass:
    """Runs a pass on each micro-batch in one compiled loop and averages losses, gradients and norms.

    With losses that are means over examples the result is that of the whole batch, but for layers that couple examples
    (batch norms see one micro-batch at a time). Memory is that of one micro-batch's activations.

    Args:
        run: the pass over a micro-batch.
        images: [B, H, W, C], B known and a multiple of `size`.
        targets: [B] or [B, classes].
        variables: the network's trainable variables, which give the gradients' shapes.
        classes: number of logits.
        size: images of a micro-batch.
    """
    parts = images.shape[0] // size
    images, targets = (tf.reshape(t, [parts, size, *t.shape[1:]]) for t in (images, targets))
    absent: list[list[bool]] = []  # which gradients and norms are None, known once the pass has been traced

    def body(j: tf.Tensor, outputs: tf.TensorArray, *sums: tf.Tensor) -> list[Any]:
        one = run(images[j], targets[j])
        found = [one.loss, *one.gradients, *one.norms]
        absent.append([value is None for value in found])
        added = [
            total if value is None else total + tf.cast(tf.convert_to_tensor(value), total.dtype) / parts
            for total, value in zip(sums, found, strict=True)
        ]
        return [j + 1, outputs.write(j, one.outputs), *added]

    zeros = [tf.zeros(()), *(tf.zeros(v.shape, v.dtype) for v in variables), *(tf.zeros(()) for _ in variables)]
    outputs = tf.TensorArray(tf.float32, parts, element_shape=[size, classes])
    start = [tf.constant(0), outputs, *zeros]
    _, outputs, *sums = tf.while_loop(lambda j, *_: j < parts, body, start, parallel_iterations=1)
    loss, *rest = [None if missing else value for missing, value in zip(absent[0], sums, strict=True)]
    return Pass(
        tf.reshape(outputs.stack(), [parts * size, classes]),
        loss,
        variables,
        rest[: len(variables)],
        rest[len(variables) :],
    )
