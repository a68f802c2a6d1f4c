"""The data set that the training program sees: sizes, classes, and the batches to train and to evaluate on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data.batches import with_images


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
        make_train: `(batch_size, seed, first_epoch, epochs) -> batches`; see `train`.
        make_evaluation: `(batch_size) -> batches`; see `evaluation`.
        class_names: Names of the classes, where they are known.
        make_mixed: `(batch_size, seed, first_epoch, epochs, alpha) -> batches`; see `mixed`. None for streamed sets.
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
    make_train: Callable[[int, int, int, int], Any] = dataclasses.field(repr=False)
    make_evaluation: Callable[[int], Any] = dataclasses.field(repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    make_mixed: Callable[[int, int, int, int, float], Any] | None = dataclasses.field(default=None, repr=False)

    def value_range(self) -> list[tuple[float, float]]:
        """Returns the values of black and white in the images that the model sees, for each channel."""
        return [((0.0 - m) / s, (1.0 - m) / s) for m, s in zip(self.mean, self.std, strict=True)]

    @property
    def is_standardized(self) -> bool:
        """Whether the images that the model sees differ from the stored pixels by more than their size."""
        return any(self.mean) or any(s * self.pixel_scale != 1 for s in self.std)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the full batches of one epoch; the remaining images, others in every epoch, are dropped."""
        return self.train_size // batch_size

    def train(self, batch_size: int, seed: int = 0, first_epoch: int = 0, epochs: int = 1) -> Any:
        """Returns the training batches of the epochs `first_epoch`, ..., `epochs - 1`, one after the other.

        Args:
            batch_size: Images in every batch; there are no partial batches.
            seed: Determines order and augmentation, together with the number of the epoch.
            first_epoch: Epochs already done, counted from 0.
            epochs: Epochs of the whole run.

        Returns:
            `steps_per_epoch(batch_size) * (epochs - first_epoch)` batches that `keras.Model.fit` takes: images float32
            `(batch_size, *image_shape)`, standardized, and labels int32 `(batch_size,)`. A `tf.data.Dataset` where
            TensorFlow is installed, else a `keras.utils.PyDataset`, with the same images in the same order.

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

    def mixed(self, batch_size: int, seed: int, first_epoch: int, epochs: int, alpha: float) -> Any:
        """Returns the batches of `train` with pairs of images and their one-hot labels mixed, by `keras.layers.MixUp`.

        Args:
            batch_size: As of `train`.
            seed: As of `train`; it determines the pairs and weights, too.
            first_epoch: As of `train`.
            epochs: As of `train`.
            alpha: The weights are drawn from Beta(alpha, alpha).

        Raises:
            ValueError: For a streamed set.
        """
        require(self.make_mixed is not None, "mixup", alpha, f"0 for {self.name}, which does not fit in memory")
        assert self.make_mixed is not None  # it was checked
        return self.make_mixed(batch_size, seed, first_epoch, epochs, alpha)

    def evaluation(self, batch_size: int = 1000) -> Any:
        """Returns batches of the evaluation images, each image once, in a fixed order; the last may be smaller."""
        return self.make_evaluation(min(batch_size, self.eval_size))

    def evaluation_of_pixels(self, batch_size: int = 1000) -> Any:
        """Returns the batches of `evaluation` with pixels as they are stored, 0 to `pixel_scale`, in float32."""
        scale = np.asarray(self.std, np.float32) * np.float32(self.pixel_scale)
        offset = np.asarray(self.mean, np.float32) * np.float32(self.pixel_scale)
        return with_images(self.evaluation(batch_size), lambda images: images * scale + offset)

    def describe(self) -> dict[str, Any]:
        """Returns what was resolved at loading, as values that JSON can hold."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.startswith("make_") and field.name != "class_names"
        }
        names = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {**fields, **names, "input": "(pixel / pixel_scale - mean) / std"}
