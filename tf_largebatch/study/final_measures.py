"""What the networks of final runs are measured for beside their accuracy: robustness, train-test gap, sharpness."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence

from tf_largebatch.analysis import LossSurface, sharpness
from tf_largebatch.conadv.robust_accuracy import RobustAccuracy
from tf_largebatch.study import arrays
from tf_largebatch.study.config import Study

# Steps of the attacks, and the length of a step as a share of the radius.
ATTACKS = {"robust_accuracy_1_step": (1, 1.0), "robust_accuracy_10_steps": (10, 0.25)}
BATCH_SIZE = 1000
SHARPNESS_TOLERANCE = 0.01


class FinalMeasures:
    """Measures trained weights in float32, whatever the runs' dtype; what is compiled serves all of them.

    Args:
        study: Says what to measure.
        data: Its data.
        network: A network of its own, float32: it takes the weights that are measured.
    """

    def __init__(self, study: Study, data: arrays.Data, network: keras.Model) -> None:
        self._study, self._data, self._network = study, data, network
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def of(self, weights: Sequence[np.ndarray]) -> dict[str, float | None]:
        """Measures weights, in the order of the network's `variables`.

        Returns:
            With `robustness`: `train_accuracy` on as many training images as there are test images, not augmented,
            and the accuracies on the test images after untargeted attacks of one step and of ten. With
            `sharpness_examples`: `sharpness`, None where Lanczos's method did not converge. Else nothing.
        """
        if self._study.robustness is None and self._study.sharpness_examples is None:
            return {}
        for variable, value in zip(self._network.variables, weights, strict=True):
            variable.assign(value)
        found: dict[str, float | None] = {}
        if self._study.robustness is not None:
            tested = len(self._data.test[1])
            found["train_accuracy"] = self._clean(_batches(self._data.training, tested))
            found |= {name: attacked(_batches(self._data.test, tested)) for name, attacked in self._attacked.items()}
        if self._study.sharpness_examples is not None:
            found["sharpness"] = self._sharpness()
        return found

    @functools.cached_property
    def _clean(self) -> RobustAccuracy:
        return RobustAccuracy(self._network, self._loss, epsilon=0.0, value_range=self._data.value_range)

    @functools.cached_property
    def _attacked(self) -> dict[str, RobustAccuracy]:
        return {name: self._make_attacked(name) for name in ATTACKS}

    def _make_attacked(self, name: str) -> RobustAccuracy:
        radius, (steps, share) = self._study.robustness, ATTACKS[name]
        assert radius is not None
        return RobustAccuracy(
            self._network,
            self._loss,
            epsilon=radius,
            value_range=self._data.value_range,
            num_steps=steps,
            step_size=share * radius,
        )

    @functools.cached_property
    def _surface(self) -> LossSurface:
        images, labels = (array[: self._study.sharpness_examples] for array in self._data.training)
        return LossSurface(self._network, images, labels, self._loss)

    def _sharpness(self) -> float | None:
        try:
            return float(sharpness(self._surface, tolerance=SHARPNESS_TOLERANCE)[0])
        except ArpackNoConvergence:
            return None


def _batches(labelled: arrays.Labelled, count: int) -> list[tuple[Any, Any]]:
    """Returns the first images and labels, in batches."""
    images, labels = (array[:count] for array in labelled)
    starts = range(0, count, BATCH_SIZE)
    return [(images[start : start + BATCH_SIZE], labels[start : start + BATCH_SIZE]) for start in starts]
