"""The data set that the training program sees: sizes, classes, and two tf.data pipelines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_largebatch.check import require


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image classification data set, ready to iterate.

    Attributes:
        name: The name it was loaded by.
        num_classes: Number of classes; labels are int32 in `[0, num_classes)`.
        image_shape: `(height, width, channels)` of the images the model sees.
        train_size: Number of training images.
        eval_size: Number of images that `evaluation` yields.
        eval_split: `"test"`, or `"validation"` for images held out of the training split.
        augment: `"none"`, `"crop_flip"` or `"inception"`, applied to training images only.
        pixel_scale: The largest possible stored pixel value.
        mean: Per-channel mean of the training images, in units of `pixel_scale`.
        std: Per-channel standard deviation of the training images, in units of `pixel_scale`.
        make_train: `(batch_size, seed, first_epoch, epochs) -> tf.data.Dataset`; see `train`.
        make_evaluation: `(batch_size) -> tf.data.Dataset`; see `evaluation`.
        class_names: Names of the classes, where they are known.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    train_size: int
    eval_size: int
    eval_split: str
    augment: str
    pixel_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    make_train: Callable[[int, int, int, int], tf.data.Dataset] = dataclasses.field(repr=False)
    make_evaluation: Callable[[int], tf.data.Dataset] = dataclasses.field(repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)

    def value_range(self) -> list[tuple[float, float]]:
        """Returns the values of black and white in the images that the model sees, for each channel."""
        return [((0.0 - m) / s, (1.0 - m) / s) for m, s in zip(self.mean, self.std, strict=True)]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the full batches of one epoch; the remaining images, others in every epoch, are dropped."""
        return self.train_size // batch_size

    def train(self, batch_size: int, seed: int = 0, first_epoch: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """Returns the training batches of the epochs `first_epoch`, ..., `epochs - 1`, one after the other.

        Args:
            batch_size: Images in every batch; there are no partial batches.
            seed: Determines order and augmentation, together with the number of the epoch.
            first_epoch: Epochs already done, counted from 0.
            epochs: Epochs of the whole run.

        Returns:
            `steps_per_epoch(batch_size) * (epochs - first_epoch)` elements: images float32
            `(batch_size, *image_shape)`, standardized, and labels int32 `(batch_size,)`.

        Raises:
            ValueError: If the batch is larger than the data set.
        """
        require(
            1 <= batch_size <= self.train_size,
            "batch_size",
            batch_size,
            f"from 1 to the {self.train_size} training images of {self.name}",
        )
        return self.make_train(batch_size, seed, first_epoch, epochs)

    def evaluation(self, batch_size: int = 1000) -> tf.data.Dataset:
        """Returns batches of the evaluation images, each image once, in a fixed order; the last may be smaller."""
        return self.make_evaluation(min(batch_size, self.eval_size))

    def describe(self) -> dict[str, Any]:
        """Returns what was resolved at loading, as values that JSON can hold."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.startswith("make_") and field.name != "class_names"
        }
        return {**fields, "input": "(pixel / pixel_scale - mean) / std"}
