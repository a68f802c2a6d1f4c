"""What can be told of the data given to `fit` before it trains on them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import keras

from tf_largebatch.check import require
from tf_largebatch.norms.targets import check_classes, classes_of, takes_class_numbers


def known_batch_size(x: Any, batch_size: int | None) -> int | None:
    """Returns the batch size of `fit`'s data where it is known without drawing a batch."""
    if is_dataset(x):
        shape = getattr(keras.tree.flatten(x.element_spec)[0], "shape", None)
        return shape[0] if shape is not None and shape.rank else None
    leaves = keras.tree.flatten(x)
    if leaves and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return min(batch_size or 32, int(leaves[0].shape[0]))
    return None


def is_dataset(x: Any) -> bool:
    """Returns whether data for `fit` are a tf.data.Dataset."""
    return hasattr(x, "element_spec")


def chained(first: Any, rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yields the first batch, which was drawn already, then the rest."""
    yield first
    yield from rest


def check_labels(model: keras.Model, loss: Any, y: Any, sample_weight: Any = None) -> None:
    """Checks that labels of classes fit the outputs and losses of a model, where all three are known.

    Outputs `[batch, classes]` are checked; of others, a mask may hide the labels that name no class.

    Args:
        model: The model, one that knows the shapes of its outputs.
        loss: What `compile` was given: a loss, its name, or losses by output.
        y: Labels, one array or tensor for each output. Anything else, such as None beside a data set, is not checked.
        sample_weight: Weights of the examples, or None. Labels of weight 0 may be any number.

    Raises:
        ValueError: If integer labels name no class or there is one score only, or one-hot labels meet a loss of
            integer labels, or the reverse.
    """
    for shape, one_loss, labels, weights in _outputs(model, loss, y, sample_weight):
        if len(shape) != 2 or one_loss is None or not getattr(labels, "shape", ()):
            continue
        one_loss, classes, given = keras.losses.get(one_loss), shape[1], tuple(labels.shape)
        if takes_class_numbers(one_loss):
            output = keras.KerasTensor(shape)
            rule = "integers, [batch] or [batch, 1], for a loss of integer labels"
            remedy = "take CategoricalCrossentropy for one-hot labels"
            require(given[1:] != (classes_of(output),), "y", given, rule, remedy)
            check_classes(one_loss, labels, output, weights)
        elif _takes_rows(one_loss):
            rule = f"one number for each of the {classes} classes, [batch, {classes}], for a loss of one-hot labels"
            fits = classes == 1 or given[1:] not in ((), (1,))
            require(fits, "y", given, rule, "take SparseCategoricalCrossentropy for integer labels")


def _takes_rows(loss: Any) -> bool:
    """Returns whether a loss of Keras's takes one number for each class."""
    of_keras = isinstance(loss, keras.losses.CategoricalCrossentropy)
    return of_keras or loss is keras.losses.categorical_crossentropy


def _outputs(model: keras.Model, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Yields the shape of each output of a model, with its part of each value; nothing if the model knows no shapes."""
    shapes = getattr(model, "output_shape", None)
    if isinstance(shapes, tuple) and all(size is None or isinstance(size, int) for size in shapes):
        shapes = [shapes]
    names = list(shapes) if isinstance(shapes, dict) else list(getattr(model, "output_names", None) or [""])
    if not isinstance(shapes, dict | list | tuple) or len(names) != len(shapes):
        return
    parts = [_by_output(value, names) for value in (shapes, *values)]
    for name in names:
        yield tuple(part.get(name) for part in parts)


def _by_output(value: Any, names: list[str]) -> dict[str, Any]:
    """Returns a value's parts by the names of the outputs; a value without parts is that of every output."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(zip(names, value, strict=False))
    return dict.fromkeys(names, value)
