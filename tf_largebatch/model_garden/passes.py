"""One network's forward and backward pass, with norms if asked for, and the sum of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.core.rates import l2_norm
from tf_largebatch.model_garden.streams import raw
from tf_largebatch.norms import Registry, measure
from tf_largebatch.tf_keras.norms import TF_KERAS


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one stream gives.

    Attributes:
        outputs: logits, float32, [B, classes].
        loss: unscaled, a float32 scalar.
        variables: the network's trainable variables.
        gradients: of the scaled loss, or None, for each variable.
        norms: for each variable a float32 scalar, or None.
    """

    outputs: tf.Tensor
    loss: tf.Tensor
    variables: list[Any]
    gradients: list[Any]
    norms: list[Any]


def run_pass(
    network: Any,
    images: tf.Tensor,
    targets: tf.Tensor,
    loss: Callable[[tf.Tensor, tf.Tensor, Any], tf.Tensor],
    scaled: Callable[[tf.Tensor], tf.Tensor],
    norms: Any,
    regularised: bool,
) -> Pass:
    """Runs a network forward and backward on a batch.

    Args:
        network: a tf_keras classifier.
        images: [B, H, W, C].
        targets: what the loss compares with, [B] or [B, classes].
        loss: the mean loss of float32 logits, targets and a list of regularisation losses (or None).
        scaled: what of that loss is differentiated: its share in the global batch's, times weight and loss scale.
        norms: the `GradientNorms` config, or None to measure none.
        regularised: whether the network's own losses (weight regularisers) are part of the loss.

    Returns:
        The pass. Its norms are `sum_i ||G_i||` over this replica's examples for "exact" and "sampled" (estimated
        from a sample), and the norm of the gradient for "replica".
    """
    variables = network.trainable_variables
    kept: dict[str, tf.Tensor] = {}

    def forward() -> tf.Tensor:
        return network(images, training=True)

    def target(outputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(outputs, tf.float32)
        value = loss(outputs, targets, network.losses if regularised else None)
        kept.setdefault("outputs", outputs)  # measure may trace it once more
        kept.setdefault("loss", value)
        return scaled(value)

    if norms is None or norms.mode == "replica":
        with tf.GradientTape() as tape:
            differentiated = target(forward())
        gradients = tape.gradient(differentiated, variables)
        measured = [None if g is None or norms is None else tf.cast(l2_norm(g), tf.float32) for g in gradients]
    else:
        size = images.shape[0] if images.shape[0] is not None else tf.shape(images)[0]
        _, measurement = measure(network, forward, target, variables, size, registry_of(norms), norms.norm_examples)
        gradients, measured = measurement.gradients, measurement.gradient_norms().unpack()
    return Pass(kept["outputs"], kept["loss"], list(variables), gradients, measured)


def registry_of(norms: Any) -> Registry:
    """The layer rules that a `GradientNorms` config asks for."""
    return TF_KERAS.allowing_generic() if norms.allow_generic else TF_KERAS


def added(passes: Sequence[Pass]) -> tuple[list[Any], list[Any], list[Any]]:
    """Variables, gradients and norms of several passes over networks that share variables, added up by variable.

    The loss is the sum of the passes' losses, so gradients add up; each image of each stream is an example of its own,
    so norms do too.
    """
    variables: dict[int, Any] = {}
    sums: dict[int, list[Any]] = {}
    for one in passes:
        for variable, *found in zip(one.variables, one.gradients, one.norms, strict=True):
            key = id(raw(variable))
            variables.setdefault(key, variable)
            known = sums.setdefault(key, [None, None])
            sums[key] = [_plus(a, b) for a, b in zip(known, found, strict=True)]
    gradients, norms = zip(*sums.values(), strict=True)
    return list(variables.values()), list(gradients), list(norms)


def _plus(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a if b is None else b
    return tf.convert_to_tensor(a) + tf.convert_to_tensor(b)
