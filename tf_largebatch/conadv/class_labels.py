"""Class labels as integers or as one row of probabilities each, and the losses that take them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.core.rates import compute_dtype

# Of Keras's own losses. A loss of the user's may be anything and is judged by the labels alone.
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


def classification_loss(loss: Any) -> Any:
    """The loss object or function behind what was given to `compile`.

    Raises:
        ValueError: if there is none, several, or one of Keras's that is not for classes.
    """
    needed = (
        "ConAdvModel needs one classification loss, such as 'sparse_categorical_crossentropy' for integer labels or "
        "'categorical_crossentropy' for one-hot ones"
    )
    flat = [part for part in keras.tree.flatten(loss) if part is not None]
    if len(flat) != 1:
        raise ValueError(f"{needed}, got loss={loss!r}.")
    if flat[0] in ("crossentropy", "ce"):
        raise ValueError(f"{needed}, by its full name, got loss={loss!r}.")
    found = keras.losses.get(flat[0])
    cls = found if hasattr(found, "__name__") else type(found)
    if cls.__module__.startswith("keras.") and cls.__name__ not in _CLASSIFICATION:
        raise ValueError(f"{needed}, got {cls.__name__}: its labels have no wrong class to attack.")
    return found


def loss_sum(loss: Any, y: Any, y_pred: Any) -> tf.Tensor:
    """The loss summed over the examples, up to a positive factor that does not depend on them, a scalar.

    In float32 (float64 for such scores). A sum, so that the gradient with respect to one image does not shrink with the
    batch: half precision would lose it.
    """
    dtype = compute_dtype(y_pred.dtype)
    value = ops.cast(loss(y, ops.cast(y_pred, dtype)), dtype)
    if value.shape.rank != 0:
        return tf.reduce_sum(value)
    if getattr(loss, "reduction", None) in (None, "sum", "none"):
        return value
    return value * tf.cast(tf.shape(y_pred)[0], dtype)


def are_sparse(y: Any, num_classes: int) -> bool:
    """Whether labels are integers, [B] or [B, 1], or one row a label, [B, num_classes].

    Raises:
        ValueError: if they are neither.
    """
    shape = tuple(getattr(y, "shape", ()))
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return True
    if len(shape) == 2 and shape[1] == num_classes:
        return False
    raise ValueError(
        f"y must hold one of {num_classes} classes an image, as integers [batch] or one-hot [batch, {num_classes}], "
        f"got shape {shape}."
    )


def to_classes(y: Any, num_classes: int) -> tf.Tensor:
    """The labels as int32, [B]; of soft labels the likeliest class."""
    if are_sparse(y, num_classes):
        return tf.reshape(tf.cast(y, tf.int32), [-1])
    return tf.argmax(y, axis=-1, output_type=tf.int32)


def in_the_form_of(y: Any, classes: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Other classes, int32 [B], in the shape and dtype of the labels y."""
    if are_sparse(y, num_classes):
        return tf.reshape(tf.cast(classes, y.dtype), tf.shape(y))
    return tf.one_hot(classes, num_classes, dtype=y.dtype)
