"""Data sets that fit in memory: uint8 arrays, shuffled whole, augmented and standardized batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_largebatch.check import number, require, within_classes
from tf_largebatch.data import array_pipeline, augmentation
from tf_largebatch.data.batches import tensorflow_is_installed
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.standardization import Standardization

Arrays = tuple[np.ndarray, np.ndarray]
# Decoded size above which a set is streamed: CIFAR has 0.15 GB, SVHN 0.3 GB, ImageNet at 64 px 15 GB.
IN_MEMORY_BYTES = 2**31


def from_arrays(
    train: Arrays,
    evaluation: Arrays,
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    pixel_scale: float = 255,
    eval_split: str = "test",
    augment: str = "none",
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    standardize: bool = True,
) -> Dataset:
    """Makes a data set of images in memory.

    Args:
        train: Images, uint8 `(n, height, width, channels)`, and integer labels `(n,)`.
        evaluation: Images and labels to evaluate on, in the same form.
        name: Its name, for messages.
        num_classes: Number of classes; by default one more than the largest training label.
        pixel_scale: The largest possible pixel value.
        eval_split: What `evaluation` is: `"test"` or `"validation"`.
        augment: `"none"`, `"crop_flip"` or `"random"`.
        image_size: Resize (bilinear, after augmentation) to this height and width.
        class_names: Names of the classes.
        standardize: Whether the model sees standardized images; else it sees pixels as they are stored.

    Raises:
        ValueError: For labels outside the classes, wrong shapes or dtypes, a scale of 0, or too few names.
    """
    require(
        augment in ("none", "crop_flip", "random"),
        "augment",
        augment,
        f"none, crop_flip or random for {name}, which is held in memory",
    )
    images, labels = train
    require(len(labels) > 0, "train", labels.shape, "one image and label or more")
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    number("pixel_scale", pixel_scale, lambda scale: 0 < scale < math.inf, "a number above 0")
    named = class_names is None or len(class_names) == num_classes
    require(named, "class_names", class_names, f"one name for each of the {num_classes} classes")
    for part, (x, y) in {"training": train, eval_split: evaluation}.items():
        if x.dtype != np.uint8 or x.ndim != 4 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{part} images of {name} must be uint8 (n, height, width, channels) with (n,) labels; "
                f"received {x.dtype} {x.shape} with {y.shape}."
            )
        check_labels(y, num_classes, f"{part} labels of {name}")
    shapes = images.shape[1:], evaluation[0].shape[1:]
    alike = image_size is not None or shapes[0] == shapes[1]
    require(alike, "evaluation", shapes[1], f"images of the training images' shape, {shapes[0]}", "pass image_size")
    mean, std = _pixel_statistics(images, pixel_scale)
    if not standardize:
        mean, std = (0.0,) * len(mean), (1 / pixel_scale,) * len(std)
    size = (image_size, image_size) if image_size else images.shape[1:3]
    standardization = Standardization(mean, std, float(pixel_scale), tuple(size))

    def make_mixed(batch_size: int, seed: int, first_epoch: int, epochs: int, alpha: float) -> Any:
        arguments = (batch_size, seed, first_epoch, epochs)
        batches = array_pipeline.training_batches(train, *arguments, augment, standardization)
        return augmentation.mixed(batches, alpha, num_classes, seed, first_epoch * (len(labels) // batch_size))

    def make_train(batch_size: int, seed: int, first_epoch: int, epochs: int) -> Any:
        # Keras's layers draw from generators with a state: in order, not in the threads of tf.data.
        pipeline = array_pipeline if augment == "random" else _pipeline()
        return pipeline.training_batches(train, batch_size, seed, first_epoch, epochs, augment, standardization)

    def make_evaluation(batch_size: int) -> Any:
        return _pipeline().evaluation_batches(evaluation, batch_size, standardization)

    return Dataset(
        name=name,
        num_classes=num_classes,
        image_shape=(*size, images.shape[3]),
        train_size=len(labels),
        eval_size=len(evaluation[1]),
        eval_split=eval_split,
        augment=augment,
        pixel_scale=float(pixel_scale),
        mean=mean,
        std=std,
        make_train=make_train,
        make_evaluation=make_evaluation,
        make_mixed=make_mixed,
        class_names=None if class_names is None else tuple(class_names),
    )


def check_labels(labels: np.ndarray, num_classes: int, what: str = "labels") -> None:
    """Checks that all labels are integers in `[0, num_classes)`.

    Args:
        labels: The labels.
        num_classes: Number of classes.
        what: What they are labels of, for the message.

    Raises:
        ValueError: Naming the first label that is not.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be integers; received {labels.dtype}.")
    within_classes(what, labels, num_classes)


def _pipeline() -> Any:
    if tensorflow_is_installed():
        from tf_largebatch.data import tensorflow_pipeline

        return tensorflow_pipeline
    return array_pipeline


def _pixel_statistics(images: np.ndarray, pixel_scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the exact mean and standard deviation of each channel, in units of `pixel_scale`."""
    values = np.arange(256) / pixel_scale
    counts = [np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])]
    mean = [float(np.average(values, weights=count)) for count in counts]
    variance = [np.average((values - m) ** 2, weights=count) for m, count in zip(mean, counts, strict=True)]
    # A constant channel carries nothing: leave its scale alone instead of dividing by zero.
    return tuple(mean), tuple(float(np.sqrt(v)) or 1.0 for v in variance)
