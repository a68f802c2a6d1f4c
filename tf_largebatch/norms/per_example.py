"""The public function: every example's gradient norm, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import flag, require
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.norms.composite import is_composite
from tf_largebatch.norms.measure import measure
from tf_largebatch.norms.recorder import NeedsGraph, Tensor
from tf_largebatch.norms.registry import KERAS, Registry
from tf_largebatch.norms.state import restored, state_of
from tf_largebatch.norms.targets import check_classes, check_lengths


def per_example_gradient_norms(
    model: keras.Model,
    x: Any,
    y: Any,
    loss: str | keras.losses.Loss | Callable[[Any, Any], Any],
    sample_weight: Any = None,
    training: bool = True,
    allow_generic: bool = False,
    registry: Registry = KERAS,
) -> dict[str, Tensor]:
    """Returns the norm of each example's own loss gradient, for each trainable tensor.

    For tensor `w_k` and example `i` of the batch it is `||grad_k f_i||_2`, where `f_i` is the example's loss times its
    weight: the part of the batch's gradient that goes through example i, with a mean loss's factor 1/B undone. The
    mean over the batch is CLARS's `s_k` (Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup",
    arXiv 2002.01576).

    With training-mode batch normalization it is the split of the batch's gradient under complete batch statistics:
    example i's share `G_i` of the sum that the gradient is. That differs from the gradient of example i in a batch of
    its own, and from how the whole batch's loss depends on example i through the statistics.

    Weight regularizers take no part: their gradient belongs to no example. Activity regularizers and `add_loss` do not
    either, here; in `LargeBatchModel` they count as part of the loss.

    Args:
        model: A built Keras model, left as it was: moving averages and random seeds are restored.
        x: The inputs, tensor(s) with the examples on axis 0.
        y: The targets.
        loss: A Keras loss, its name, or a function `(y_true, y_pred)` whose values are averaged.
        sample_weight: Optional weights of the examples' losses, shape [B].
        training: Whether the model runs in training mode.
        allow_generic: Whether layers without a rule are differentiated alone, example by example, at two to three
            times their own cost (`tf_largebatch.norms.use_generic` does so for one layer).
        registry: The layer rules.

    Returns:
        `{variable path: float32 tensor of shape [B]}`, without the variables that the loss does not depend on. A second
        variable of one path is `"path#2"`, as in `layerwise_rates`.

    Raises:
        ValueError: If the model is not built, targets or weights do not fit the examples or the classes, a layer with
            trainable variables has no rule, a variable is used elsewhere than in the layer that owns it, or a layer's
            first axis is not the batch; the message names them.
    """
    require(isinstance(model, keras.Model), "model", model, "a Keras model")
    check_built(model)
    registry = registry.allowing_generic() if flag("allow_generic", allow_generic) else registry
    x, y = as_tensors(x), as_tensors(y)
    some = any(t is not None and t.shape[0] != 0 for t in keras.tree.flatten(x))
    require(some, "x", None if x is None else "a batch of 0 examples", "a batch of one example or more")
    batch_size = number_of_examples(x)
    check_lengths(batch_size, x=x, y=y, sample_weight=sample_weight)
    loss_object = as_loss(loss)
    variables = model.trainable_variables

    def checked_loss(y_pred: Any) -> Tensor:
        check_classes(keras.losses.get(loss), y, y_pred)
        return loss_object(y, y_pred, sample_weight=sample_weight)

    def squared_norms() -> list[Tensor | None]:
        _, measurement = measure(
            model,
            lambda: model(x, training=training),
            checked_loss,
            variables,
            batch_size,
            registry,
        )
        return measurement.squared_norms

    with restored(state_of(model)):
        try:
            found = squared_norms()
        except NeedsGraph:
            import tensorflow as tf  # the only backend that needs a graph for some models

            found = tf.function(squared_norms, autograph=False)()
    undo = undivided(loss_object, batch_size, sample_weight)
    labels = variable_labels(variables)
    return {
        label: undo * ops.sqrt(squares) for label, squares in zip(labels, found, strict=True) if squares is not None
    }


def check_built(model: Any) -> None:
    """Raises ValueError if the model has no variables yet."""
    require(
        all(layer.built for layer in layers_within(model)),
        "model",
        getattr(model, "name", model),
        "a built model",
        "call it once on a batch, or build it, before its norms are measured",
    )


def as_tensors(batch: Any) -> Any:
    """Returns the arrays of nested inputs or targets as tensors; None and sparse and ragged tensors stay."""

    def as_tensor(t: Any) -> Any:
        return t if t is None or is_composite(t) else ops.convert_to_tensor(t)

    return keras.tree.map_structure(as_tensor, batch)


def number_of_examples(x: Any) -> int:
    """Returns the size of axis 0 of the first input that is not None."""
    first = next(t for t in keras.tree.flatten(x) if t is not None)
    return int(first.shape[0])


def as_loss(loss: Any) -> keras.losses.Loss:
    """Returns a Keras loss object that reduces to a scalar.

    Raises:
        ValueError: If the loss does not reduce.
    """
    loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        loss = _FunctionLoss(loss)
    if loss.reduction in (None, "none"):
        raise ValueError(
            f"loss must reduce to a scalar, got {loss.name!r} with reduction={loss.reduction!r}: "
            "use reduction='sum_over_batch_size' or 'sum'."
        )
    return loss


class _FunctionLoss(keras.losses.Loss):
    """The mean of a plain function's values."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__(name=getattr(function, "__name__", "loss"))
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._function(y_true, y_pred)


def undivided(loss: keras.losses.Loss, batch_size: int, sample_weight: Any) -> float | Tensor:
    """Returns the factor by which a loss's reduction divides the sum of the examples' losses."""
    if loss.reduction == "sum":
        return 1.0
    if loss.reduction == "mean_with_sample_weight" and sample_weight is not None:
        return ops.sum(ops.cast(sample_weight, "float32"))
    return float(batch_size)
