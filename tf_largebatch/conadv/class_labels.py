"""Class labels, as integers or as rows of one number for each class, and the losses that take them."""

from __future__ import annotations

from typing import Any

from keras import ops

from tf_largebatch.core import random_numbers
from tf_largebatch.core.pgd import random_wrong_classes
from tf_largebatch.core.rates import compute_dtype

# Of Keras's losses. A user's own loss may be anything: only its labels are checked.
_CLASSIFICATION = {
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "kl_divergence",
    "sparse_categorical_crossentropy",
}


def is_of_keras(loss: Any) -> bool:
    """Returns whether a loss, an object or a function, is one of Keras's own."""
    kind = loss if hasattr(loss, "__name__") else type(loss)
    return getattr(kind, "__module__", "").startswith("keras.")


def is_for_classes(loss: Any) -> bool:
    """Returns whether a loss, an object or a function, compares one score for each class, or may do so.

    False for Keras's losses of other labels, such as the mean squared error.
    """
    return not is_of_keras(loss) or getattr(loss, "__name__", type(loss).__name__) in _CLASSIFICATION


def loss_sum(loss: Any, y: Any, y_pred: Any) -> Any:
    """Returns the loss summed over the examples, up to a positive factor that does not depend on them, a scalar.

    It is float32 (float64 for such scores). The gradient of a sum with respect to one image does not shrink as the
    batch grows, as that of a mean does.
    """
    dtype = compute_dtype(y_pred.dtype)
    value = ops.cast(loss(y, ops.cast(y_pred, dtype)), dtype)
    if len(value.shape) != 0:
        return ops.sum(value)
    if getattr(loss, "reduction", None) in (None, "sum", "none"):
        return value
    return value * ops.cast(ops.shape(y_pred)[0], dtype)


def are_sparse(y: Any, num_classes: int) -> bool:
    """Returns whether labels are integers, [B] or [B, 1], or rows of one number for each class, [B, num_classes].

    Raises:
        ValueError: If they are neither.
    """
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return True
    if len(shape) == 2 and shape[1] == num_classes:
        return False
    raise ValueError(
        f"y must hold one of {num_classes} classes for each image, as integers [batch] or one-hot "
        f"[batch, {num_classes}]; received shape {shape}."
    )


def to_classes(y: Any, num_classes: int) -> Any:
    """Returns the labels as int32, [B]: the likeliest class of a row."""
    if are_sparse(y, num_classes):
        return ops.reshape(ops.cast(y, "int32"), [-1])
    return ops.cast(ops.argmax(y, axis=-1), "int32")


def own_labels(y: Any, num_classes: int) -> Any:
    """Returns which classes are an image's own, bool [B, num_classes].

    In a row of numbers these are the classes above the row's smallest number: the ones of a one-hot or multi-hot row,
    with label smoothing too, and both classes of two mixed images. A row of equal numbers has all classes (if they are
    0.5 or more) or none.
    """
    if are_sparse(y, num_classes):
        return ops.cast(ops.one_hot(to_classes(y, num_classes), num_classes), "bool")
    smallest, largest = ops.min(y, axis=-1, keepdims=True), ops.max(y, axis=-1, keepdims=True)
    return ops.where(largest > smallest, y > smallest, ops.cast(y, "float32") >= 0.5)


def random_targets(y: Any, num_classes: int, seed: Any) -> Any:
    """Draws for each image a uniformly random class that is not among its own labels, int32 [B]; -1 if there is none.

    Args:
        y: Labels, as `are_sparse` takes them.
        num_classes: Number of classes.
        seed: int32 [2].
    """
    drawn = random_wrong_classes(to_classes(y, num_classes), num_classes, seed)
    if are_sparse(y, num_classes):
        return drawn
    # Of several own labels the first draw avoids one: what hits another is drawn again among the wrong classes.
    own = own_labels(y, num_classes)
    hit = ops.any(own & ops.cast(ops.one_hot(drawn, num_classes), "bool"), axis=-1)
    order = random_numbers.uniform(ops.shape(own), random_numbers.split(seed, 1)[0], "float32")
    again = ops.cast(ops.argmax(ops.where(own, -ops.ones_like(order), order), axis=-1), "int32")
    target = ops.where(hit, again, drawn)
    return ops.where(ops.all(own, axis=-1), -ops.ones_like(target), target)


def in_the_form_of(y: Any, classes: Any, num_classes: int) -> Any:
    """Returns other classes, int32 [B], in the shape and dtype of the labels y; -1 gives a row of zeros."""
    if are_sparse(y, num_classes):
        return ops.reshape(ops.cast(classes, y.dtype), ops.shape(y))
    return ops.cast(ops.one_hot(classes, num_classes), y.dtype)


def are_right(y: Any, scores: Any, num_classes: int) -> Any:
    """Returns for each image whether its highest score is that of its label, bool [B].

    Args:
        y: Labels, as `are_sparse` takes them. In a row the label is the largest number, or any of the largest ones.
        scores: One score for each class, [B, num_classes].
        num_classes: Number of classes.
    """
    said = ops.argmax(scores, axis=-1)
    if are_sparse(y, num_classes):
        return ops.cast(said, "int32") == to_classes(y, num_classes)
    is_said = ops.cast(ops.one_hot(said, num_classes), "bool")
    return ops.any(is_said & own_labels(y, num_classes) & (y >= ops.max(y, axis=-1, keepdims=True)), axis=-1)
