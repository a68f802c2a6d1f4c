"""Labels as arrays, and checks that targets and weights fit the inputs and the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_largebatch.check import require, within_classes
from tf_largebatch.keras_internals import wrapped_function

if keras.backend.backend() == "jax":
    from tf_largebatch.backend.jax.processes import whole
    from tf_largebatch.backend.jax.step_context import is_known
else:
    from tf_largebatch.backend.tensorflow.processes import whole
    from tf_largebatch.backend.tensorflow.step_context import is_known


def as_arrays(y: Any) -> Any:
    """Returns labels as an array, or as the nest of arrays that the labels of several outputs are."""
    parts = y.values() if isinstance(y, dict) else y
    nested = isinstance(y, dict | list | tuple) and all(len(getattr(part, "shape", ())) for part in parts)
    return y if nested or hasattr(y, "shape") else np.asarray(y)


def check_lengths(batch_size: int, **arguments: Any) -> None:
    """Checks that every array has one row for each example.

    Args:
        batch_size: Number of examples.
        arguments: Nested arrays or tensors, by the names of their arguments; numbers and None fit every batch.

    Raises:
        ValueError: If the first axis of one has another length.
    """
    for name, values in arguments.items():
        is_list = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        for value in [np.asarray(values)] if is_list else keras.tree.flatten(values):
            shape = tuple(getattr(value, "shape", ()))
            fits = not shape or shape[0] in (None, batch_size)
            require(fits, name, shape, f"one entry for each of the {batch_size} examples")


def takes_class_numbers(loss: Any) -> bool:
    """Returns whether a loss of Keras's, an object or a function, takes integer labels."""
    of_keras = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    return of_keras or loss is keras.losses.sparse_categorical_crossentropy


def classes_of(output: Any) -> int:
    """Returns the number of classes that a classifier gives scores for.

    Args:
        output: What the classifier gives: tensors or their specifications.

    Raises:
        ValueError: Unless it is one tensor [batch, classes] with 2 classes or more. The likeliest class of a single
            score would always be class 0.
    """
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(output)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not shapes[0][1] or shapes[0][1] < 2:
        raise ValueError(
            f"model must give one score per class, [batch, classes] with 2 or more; received output {shapes}: give a "
            "binary classifier two scores, Dense(2), or the loss BinaryCrossentropy."
        )
    return int(shapes[0][1])


def check_classes(loss: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> None:
    """Checks that integer labels name classes of the model, where the loss takes such labels and they are known.

    TensorFlow fails on other labels inside its kernels, or returns NaN; JAX takes them for no class at all.

    Args:
        loss: Keras's loss object or function.
        y: Labels.
        y_pred: Scores or probabilities, or their specification, with the classes on the loss's axis (by default the
            last).
        sample_weight: One weight for each label, or other weights, which are not read. A label of weight 0 may be any
            number.

    Raises:
        ValueError: If a label is below 0, or not below the number of classes.
    """
    if not takes_class_numbers(loss):
        return
    known = isinstance(y, np.ndarray) or (len(keras.tree.flatten(y)) == 1 and is_known(y))
    if not known or not getattr(y_pred, "shape", ()):
        return
    labels = _whole_array(y)
    arguments = wrapped_function(loss)[1]
    ignored, axis = arguments.get("ignore_class"), arguments.get("axis", -1)
    if ignored is not None:
        labels = np.where(labels == ignored, 0, labels)
    if isinstance(sample_weight, np.ndarray) or (sample_weight is not None and is_known(sample_weight)):
        weights = _whole_array(sample_weight)
        labels = np.where(weights.reshape(labels.shape) == 0, 0, labels) if weights.size == labels.size else labels
    if y_pred.shape[axis] is not None:
        within_classes("y", labels, y_pred.shape[axis])


def _whole_array(values: Any) -> np.ndarray:
    """Returns an array or tensor as an array, with the other processes' part of the batch."""
    return np.asarray(values if isinstance(values, np.ndarray) else whole(values))
