"""The loss of fixed examples as a function of a model's weights."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_largebatch.analysis.derivatives import Derivatives
from tf_largebatch.check import require
from tf_largebatch.core.paths import variable_labels

Arrays = list[np.ndarray]


class LossSurface:
    """The mean loss of fixed examples as a function of a model's trainable weights.

        f(w) = (1/n) sum_i loss(y_i, model_w(x_i))

    Weight decay and losses that layers add are not part of it. No method changes the model.

    Args:
        model: A built model.
        x: Its input, an array of n examples.
        y: Targets, n.
        loss: A Keras loss, its name, or a function of `y` and the model's output that returns a mean or one value an
            example; by default the loss that the model is compiled with.
        training: Whether batch normalization takes the statistics of the examples, as in training, in place of its
            moving averages. Dropout is then random.
        batch_size: Examples at a time; by default all. With `training=True` it is what batch normalization sees.

    Raises:
        ValueError: If the model is no built model or has no loss, there is not one target for each example, or
            `batch_size` is out of range.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any,
        loss: Any = None,
        training: bool = False,
        batch_size: int | None = None,
    ) -> None:
        require(isinstance(model, keras.Model), "model", model, "a Keras model")
        require(model.built, "model", model.name, "built", "call it once, or give it an Input")
        loss = getattr(model, "loss", None) if loss is None else loss
        require(loss is not None, "loss", None, "a loss, where the model is compiled without one")
        self._model, self._loss, self._training = model, keras.losses.get(loss), training
        self._x, self._y = np.asarray(x), np.asarray(y)
        alike = self._x.ndim and self._y.ndim and len(self._x) == len(self._y)
        require(bool(alike), "y", self._y.shape, f"one target for each example of x, which has shape {self._x.shape}")
        count = batch_size is None or (isinstance(batch_size, int) and batch_size > 0)
        require(count, "batch_size", batch_size, "a whole number above 0, or None")
        self._batch_size = len(self._x) if batch_size is None else batch_size
        self._derivatives = Derivatives(self._of_batch)

    @property
    def labels(self) -> list[str]:
        """The names of the trainable variables: their paths, `"path#2"` for the second of that path."""
        return variable_labels(self._model.trainable_variables)

    def weights(self) -> Arrays:
        """Returns the present weights."""
        return [ops.convert_to_numpy(v) for v in self._model.trainable_variables]

    def value(self, weights: Sequence[np.ndarray] | None = None) -> float:
        """Returns the loss at the given weights; by default at the present ones."""
        weights = self.weights() if weights is None else weights
        return float(self._mean(lambda *batch: [ops.convert_to_numpy(self._derivatives.value(weights, *batch))])[0])

    def gradient(self, weights: Sequence[np.ndarray] | None = None) -> Arrays:
        """Returns the gradient of f, in the shapes of the weights."""
        weights = self.weights() if weights is None else weights
        return self._mean(lambda *batch: _arrays(self._derivatives.gradient(weights, *batch)))

    def hessian_product(self, vectors: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None = None) -> Arrays:
        """Returns the Hessian of f times a vector, both in the shapes of the weights."""
        weights = self.weights() if weights is None else weights
        return self._mean(lambda *batch: _arrays(self._derivatives.product(weights, vectors, *batch)))

    def _of_batch(self, weights: Sequence[Any], x: Any, y: Any, others: Sequence[Any]) -> Any:
        output, _ = self._model.stateless_call(weights, others, x, training=self._training)
        return ops.mean(ops.cast(self._loss(y, output), "float32"))

    def _batches(self) -> Iterator[tuple[float, Any, Any]]:
        n = len(self._x)
        for start in range(0, n, self._batch_size):
            x, y = (array[start : start + self._batch_size] for array in (self._x, self._y))
            yield len(x) / n, x, y

    def _mean(self, function: Callable[..., Arrays]) -> Arrays:
        """Returns the mean over the examples of what a function returns for each batch."""
        others = [ops.convert_to_tensor(v) for v in self._model.non_trainable_variables]
        parts = [[share * a for a in function(x, y, others)] for share, x, y in self._batches()]
        return [functools.reduce(operator.add, column) for column in zip(*parts, strict=True)]


def _arrays(tensors: Sequence[Any]) -> Arrays:
    return [ops.convert_to_numpy(tensor) for tensor in tensors]
