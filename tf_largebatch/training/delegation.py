"""What a wrapped model overrides of Keras's training: called where the wrapper's step can call it, else refused."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from tf_largebatch.check import require
from tf_largebatch.keras_internals import COMPILED_ATTRIBUTES


def overrides(model: keras.Model, name: str) -> bool:
    """Returns whether a model has a method or property of its own in place of keras.Model's."""
    return name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name)


def check_trainable_by_wrapper(model: keras.Model) -> None:
    """Raises ValueError unless it is a Keras model without a training step of its own, which a wrapper would ignore."""
    require(isinstance(model, keras.Model), "model", model, "a Keras model")
    require(
        not overrides(model, "train_step"),
        "model",
        model.name,
        f"a model without a train_step of its own, which the wrapper's step would replace ({type(model).__name__} has "
        "one)",
        "move its loss into compute_loss and its metrics into compute_metrics, which the wrapper calls, or train "
        "without the wrapper, with gradient_norms='replica'",
    )


@contextlib.contextmanager
def compiled_as(model: keras.Model, wrapper: keras.Model) -> Iterator[keras.Model]:
    """Within it the wrapped model has the compiled loss, metrics and optimizer of the wrapper."""
    state = vars(model)
    before = {name: state[name] for name in COMPILED_ATTRIBUTES if name in state}
    state.update({name: vars(wrapper)[name] for name in COMPILED_ATTRIBUTES if name in vars(wrapper)})
    try:
        yield model
    finally:
        for name in COMPILED_ATTRIBUTES:
            state.pop(name, None)
        state.update(before)


def compute_loss(model: keras.Model, wrapper: keras.Model, arguments: dict[str, Any]) -> Any:
    """Returns the wrapped model's own `compute_loss`, on the wrapper's compiled loss."""
    if "training" not in inspect.signature(model.compute_loss).parameters:  # as before Keras 3.3
        arguments = {name: value for name, value in arguments.items() if name != "training"}
    with compiled_as(model, wrapper):
        return model.compute_loss(**arguments)


def fit_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call of `keras.Model.fit` by name, defaults included."""
    bound = inspect.signature(keras.Model.fit).bind(None, *args, **kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "self"}
