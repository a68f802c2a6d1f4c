"""Auxiliary batch normalization: separate batch normalizations for each kind of image that a model sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import require
from tf_largebatch.conadv.backend import snapshots
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.norms.intercept import intercept


def batch_normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the batch normalizations of a model, at any depth of nesting."""
    return [layer for layer in layers_within(model) if isinstance(layer, keras.layers.BatchNormalization)]


class AuxiliaryBatchNorms(keras.layers.Layer):
    """Holds an auxiliary copy of every batch normalization of a model: own statistics, gamma and beta.

    Within `intercept`, each batch normalization of the model computes with its auxiliary layer; all other weights are
    shared. The model itself is not changed. The auxiliary layers belong to this layer, which the wrapper tracks, so
    they are trained and saved with the wrapper and not with the model.

    Source: Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial Examples Improve Image Recognition", arXiv 1911.09665
    (AdvProp), the auxiliary batch norm.

    Args:
        prefix: First parts of the auxiliary layers' paths. The path of the batch normalization that each one stands in
            for follows, so a pattern that excludes one from an optimizer's layer adaptation also excludes the other.
        name: The layer's name.

    Attributes:
        layers: The auxiliary batch normalizations, in the order of `batch_normalizations(model)`.
    """

    def __init__(self, prefix: str, name: str) -> None:
        super().__init__(name=name)
        self._prefix = prefix
        # Not tracked by Keras: the auxiliary layers have attributes of their own, and the model's layers are not ours.
        object.__setattr__(self, "layers", [])
        object.__setattr__(self, "_main_layers", [])

    def create(self, model: keras.Model) -> None:
        """Creates an auxiliary layer for each batch normalization of a built model.

        Raises:
            ValueError: If a batch normalization cannot be made from its `get_config()`.
        """
        for main in batch_normalizations(model):
            auxiliary = _cloned(main)
            parts = [*self._prefix.split("/"), *main.path.split("/")[:-1]]
            with keras.name_scope(parts[-1], override_parent="/".join(parts[:-1])):
                _build_like(auxiliary, main)
            # tf.train.Checkpoint follows attributes and does not look into lists.
            setattr(self, f"auxiliary_{len(self.layers)}", auxiliary)
            self.layers.append(auxiliary)
            self._main_layers.append(main)

    def copy_from_main(self) -> None:
        """Copies the weights of the model's batch normalizations into the auxiliary layers."""
        for main, auxiliary in self.replacements().items():
            for target, source in zip(auxiliary.weights, main.weights, strict=True):
                snapshots.copy(target, source)

    def follow_trainable(self) -> None:
        """Freezes and unfreezes the auxiliary layers as the model's batch normalizations are."""
        for main, auxiliary in self.replacements().items():
            if auxiliary.trainable != main.trainable:
                auxiliary.trainable = main.trainable

    def replacements(self) -> dict[Any, Any]:
        """Returns `{batch normalization of the model: its auxiliary layer}`."""
        return dict(zip(self._main_layers, self.layers, strict=True))

    @contextlib.contextmanager
    def intercept(self) -> Iterator[None]:
        """Makes the auxiliary layers compute in place of the model's batch normalizations, on this replica only."""
        with contextlib.ExitStack() as stack:
            for main, auxiliary in self.replacements().items():
                stack.enter_context(intercept(main, auxiliary.call))
            yield

    def distance(self) -> Any:
        """Returns how far the moving averages are from the model's own; see the function `distance`."""
        return distance(self.replacements().items())


def variables_without_decay(model: keras.Model) -> list[Any]:
    """Returns every variable that should get no weight decay: biases, and gamma and beta of all batch normalizations.

    These are the variables of fewer than two dimensions, which CLARS and LARS exclude by default. For a wrapper such as
    `ConAdvModel` they include the auxiliary batch normalizations'. Frozen variables are listed too, since they may be
    unfrozen later. Give the list to any Keras optimizer before the optimizer is built:

        optimizer.exclude_from_weight_decay(var_list=variables_without_decay(model))

    Args:
        model: A built model or wrapper.

    Raises:
        ValueError: If the model is not built: its variables do not exist yet.
    """
    require(model.built, "model", model.name, "built, so that its variables exist", "call model.build(input_shape)")
    return [variable for variable in model.weights if len(variable.shape) < 2]


def distance(pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Measures how far two sets of moving averages are apart, in standard deviations of the first.

        d^2 = mean over all channels of ((mean' - mean)^2 + (sd' - sd)^2) / (sd^2 + epsilon)

    Args:
        pairs: Pairs of a batch normalization and its auxiliary layer, of Keras 3 or tf_keras.

    Returns:
        A float32 scalar; 0 if there are no pairs.
    """
    squares = []
    for main, auxiliary in pairs:
        mean, variance = (ops.cast(v, "float32") for v in (main.moving_mean, main.moving_variance))
        other_mean, other_variance = (
            ops.cast(v, "float32") for v in (auxiliary.moving_mean, auxiliary.moving_variance)
        )
        difference = ops.square(other_mean - mean) + ops.square(ops.sqrt(other_variance) - ops.sqrt(variance))
        squares.append(difference / (variance + main.epsilon))
    return ops.sqrt(ops.mean(ops.concatenate(squares, axis=0))) if squares else ops.zeros((), "float32")


def _cloned(main: Any) -> Any:
    try:
        return type(main).from_config(main.get_config())
    except TypeError as error:
        raise ValueError(
            f"Auxiliary batch normalization needs a copy of layer {main.path!r}, and {type(main).__name__} cannot be "
            "made from its get_config(): let get_config() return all arguments of the constructor."
        ) from error


def _build_like(auxiliary: Any, main: Any) -> None:
    if main.input_spec is None or not main.input_spec.axes:
        auxiliary.build_from_config(main.get_build_config())
        return
    shape: list[int | None] = [None] * main.input_spec.ndim
    for axis, size in main.input_spec.axes.items():
        shape[axis] = size
    auxiliary.build(tuple(shape))
