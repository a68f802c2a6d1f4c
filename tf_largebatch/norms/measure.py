"""One forward and backward pass that gives the gradient and every example's share of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tf_largebatch.norms.measurement import Measurement
from tf_largebatch.norms.recorder import Variable
from tf_largebatch.norms.registry import Registry, check_replacements, check_supported
from tf_largebatch.norms.shapes import Size

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.measure import measuring_pass
else:
    from tf_largebatch.backend.tensorflow.measure import measuring_pass

__all__ = ["measure"]


def measure(
    model: Any,
    forward: Callable[[], Any],
    loss: Callable[[Any], Any],
    variables: Sequence[Variable],
    batch_size: Size,
    registry: Registry,
    examples: int | None = None,
    replacements: Mapping[Any, Any] | None = None,
    scale: Callable[[Any], Any] = lambda loss: loss,
) -> tuple[Any, Measurement]:
    """Runs the model forward, differentiates the loss, and splits the gradient among the examples.

    What the model and the loss assign (moving averages, metrics, random seeds) is assigned to the variables; on JAX,
    within a `keras.StatelessScope`, in that scope.

    Args:
        model: The model that `forward` calls.
        forward: Computes the model's output.
        loss: A scalar of that output; it may read variables (weight regularizers), which counts
            for the gradient and not for the examples.
        variables: The trainable variables.
        batch_size: Number of examples B.
        registry: The layer rules.
        examples: How many examples to measure, the first ones; None for all.
        replacements: For layers of the model another one each, whose rule and variables compute this pass in their
            place: the auxiliary batch norms of ConAdv. A replacement sees the input, mask and training mode of the
            layer it stands for.
        scale: What of the loss is differentiated.

    Returns:
        The model's output and the measurement.

    Raises:
        ValueError: If a layer has no rule, a variable is used elsewhere than in the layer that owns it, or a
            replacement is not built or stands for no layer of the model.
    """
    layers = check_supported(model, registry)
    if replacements:
        replacing = check_replacements(model, replacements, registry)
        layers = list({id(layer): layer for layer in (*layers, *replacing)}.values())
    return measuring_pass(
        model, layers, forward, loss, scale, variables, batch_size, registry, examples, replacements or {}
    )
