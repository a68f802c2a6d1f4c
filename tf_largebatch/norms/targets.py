"""Labels as arrays, and checks that targets and weights fit the inputs and the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_largebatch.check import require, within_classes

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


def check_classes(loss: Any, y: Any, y_pred: Any) -> None:
    """Checks that integer labels name classes of the model, where the loss takes such labels and they are known.

    TensorFlow fails on other labels inside its kernels, or returns NaN; JAX takes them for no class at all.

    Args:
        loss: Keras's loss object or function.
        y: Labels.
        y_pred: Scores or probabilities, [..., classes].

    Raises:
        ValueError: If a label is below 0, or not below the number of classes.
    """
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    if not sparse and loss is not keras.losses.sparse_categorical_crossentropy:
        return
    known = isinstance(y, np.ndarray) or (len(keras.tree.flatten(y)) == 1 and is_known(y))
    if not known or not getattr(y_pred, "shape", ()):
        return
    labels = np.asarray(y if isinstance(y, np.ndarray) else whole(y))  # with the other processes' part of the batch
    ignored = getattr(loss, "ignore_class", None)
    within_classes("y", labels if ignored is None else labels[labels != ignored], y_pred.shape[-1])
