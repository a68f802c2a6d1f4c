"""A callback that draws adversarial images while `ConAdvModel` trains."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_largebatch.check import require
from tf_largebatch.files import local_path
from tf_largebatch.norms.targets import as_arrays
from tf_largebatch.plots.adversarial_images import plot_adversarial_images


class AdversarialPictures(keras.callbacks.Callback):
    """Draws clean images, their perturbations and adversarial images while `ConAdvModel` trains.

    It runs the model's own attack on the classifier as it is evaluated (`adversarial_images(main=True)`), with the same
    targets and starting points every time.

    Args:
        path: File of the picture. With `{epoch}` in its name, each epoch drawn has a file; without, the last replaces
            the one before.
        x: Images, [n, height, width, channels], in the model's `value_range`; the first eight are drawn.
        y: Their labels as in training: integers, one-hot, or what else the model trains on. Labels are shown where
            answers are right or wrong, and answers where the model has one score for each class.
        class_names: Names of the classes; by default their numbers.
        every: Draw whenever this number of epochs has passed, and at the end; None to draw at the end only.

    Raises:
        ValueError: If `every` is not a positive integer or None, or there is not one label for each image; when
            training begins, if the model is not a `ConAdvModel`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        x: Any,
        y: Any,
        class_names: Sequence[str] | None = None,
        every: int | None = None,
    ) -> None:
        super().__init__()
        is_count = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        require(every is None or is_count, "every", every, "a positive integer or None")
        self.path = os.fspath(local_path(path))
        self.x, self.y = np.asarray(x)[:8], keras.tree.map_structure(lambda t: np.asarray(t)[:8], as_arrays(y))
        shapes = [labels.shape for labels in keras.tree.flatten(self.y)]
        alike = all(shape[:1] == self.x.shape[:1] for shape in shapes)
        received = shapes[0] if len(shapes) == 1 else shapes
        require(alike, "y", received, f"one label for each image of x, which has shape {self.x.shape}")
        self.class_names = class_names
        self.every = every
        self._epoch, self._drawn = 0, True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks that the model can be asked for adversarial images."""
        rule, remedy = "a ConAdvModel", "give AdversarialPictures to the fit of a ConAdvModel"
        require(hasattr(self.model, "adversarial_images"), "model", self.model, rule, remedy)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draws after every `every` epochs."""
        self._epoch, self._drawn = epoch + 1, False
        if self.every is not None and self._epoch % self.every == 0:
            self._draw()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Draws the end of training, unless its last epoch was drawn."""
        if not self._drawn:
            self._draw()

    def _draw(self) -> None:
        self._drawn = True
        adversarial = self.model.adversarial_images(self.x, self.y, step=0, main=True)
        loss = self.model.loss_to_attack()
        plot_adversarial_images(
            self.x,
            adversarial,
            self.y if loss.has_answers else None,
            model=None if loss.num_classes is None else self.model.model,
            value_range=self.model.value_range,
            class_names=self.class_names,
            title=f"after epoch {self._epoch}",
            path=self.path.replace("{epoch}", f"{self._epoch:04d}"),
        )
