"""Split batch normalisation: a set of batch normalisations of its own for each kind of image a model sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_largebatch.norms.intercept import intercept


def batch_normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch normalisations of a model, however deep they are nested."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


class BatchNormSet(keras.layers.Layer):
    """A twin for every batch normalisation of a model: its own statistics, gamma and beta, everything else shared.

    The model is not changed. While a pass runs inside `intercept`, each batch normalisation's `call` is that of its
    twin; before and after it is its own. The twins belong to this layer, which the wrapper tracks, so that they are
    trained and saved with the wrapper, and not with the model.

    Source: Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial Examples Improve Image Recognition", arXiv 1911.09665
    (AdvProp), the auxiliary batch norm.

    Args:
        prefix: first parts of the twins' paths; the path of the batch normalisation that each stands for follows, so
            that a pattern which excludes one from an optimizer's layer adaptation excludes the other.
        name: the layer's name.
    """

    def __init__(self, prefix: str, name: str) -> None:
        super().__init__(name=name)
        self._prefix = prefix
        # Past Keras's tracking: the twins have attributes of their own, and the model's layers are no part of this one.
        object.__setattr__(self, "twins", [])
        object.__setattr__(self, "_mains", [])

    def create(self, model: keras.Model) -> None:
        """Makes the twins of a built model's batch normalisations, equal to them."""
        for main in batch_normalizations(model):
            twin = _cloned(main)
            parts = [*self._prefix.split("/"), *main.path.split("/")[:-1]]
            with keras.name_scope(parts[-1], override_parent="/".join(parts[:-1])):
                _build_like(twin, main)
            # tf.train.Checkpoint finds attributes alone, and nothing in lists.
            setattr(self, f"twin_{len(self.twins)}", twin)
            self.twins.append(twin)
            self._mains.append(main)

    def equal_to_main(self) -> None:
        """Gives every twin the values of the batch normalisation it stands for."""
        for main, twin in self.substitutes().items():
            for mine, theirs in zip(twin.weights, main.weights, strict=True):
                mine.assign(theirs)

    def follow_trainable(self) -> None:
        """Freezes and thaws the twins as the batch normalisations they stand for are."""
        for main, twin in self.substitutes().items():
            if twin.trainable != main.trainable:
                twin.trainable = main.trainable

    def replacements(self) -> dict[Any, Any]:
        """`{batch normalisation: twin}`."""
        return dict(zip(self._mains, self.twins, strict=True))

    @contextlib.contextmanager
    def intercept(self) -> Iterator[None]:
        """Within it, and on this replica alone, the twins compute in place of the model's batch normalisations."""
        with contextlib.ExitStack() as stack:
            for main, twin in self.substitutes().items():
                stack.enter_context(intercept(main, twin.call))
            yield

    def distance(self) -> tf.Tensor:
        """How far the moving averages have moved apart; see `distance`."""
        return distance(self.substitutes().items())


def distance(pairs: Iterable[tuple[Any, Any]]) -> tf.Tensor:
    """How far moving averages have moved apart, in standard deviations of the first of each pair.

        d^2 = mean over all channels of ((mean' - mean)^2 + (sd' - sd)^2) / (sd^2 + epsilon)

    Args:
        pairs: batch normalisations and their twins, of either Keras.

    Returns:
        A float32 scalar; 0 without batch normalisations.
    """
    squares = []
    for main, twin in pairs:
        mean, variance = (ops.cast(v, "float32") for v in (main.moving_mean, main.moving_variance))
        other_mean, other_variance = (ops.cast(v, "float32") for v in (twin.moving_mean, twin.moving_variance))
        shift = ops.square(other_mean - mean) + ops.square(ops.sqrt(other_variance) - ops.sqrt(variance))
        squares.append(shift / (variance + main.epsilon))
    return tf.sqrt(tf.reduce_mean(tf.concat(squares, axis=0))) if squares else tf.zeros(())


def _cloned(main: Any) -> Any:
    try:
        return type(main).from_config(main.get_config())
    except TypeError as error:
        raise ValueError(
            f"Split batch normalisation needs a copy of layer {main.path!r}, and {type(main).__name__} cannot be made "
            "from its get_config(): give it one that returns all arguments of its constructor."
        ) from error


def _build_like(twin: Any, main: Any) -> None:
    if main.input_spec is None or not main.input_spec.axes:
        twin.build_from_config(main.get_build_config())
        return
    shape: list[int | None] = [None] * main.input_spec.ndim
    for axis, size in main.input_spec.axes.items():
        shape[axis] = size
    twin.build(tuple(shape))
