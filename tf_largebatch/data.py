"""Image classification data sets: real digits built in, the rest through tensorflow_datasets.

The order and the augmentation of every image are a function of (seed, epoch) alone, so a run resumed at an
epoch sees exactly what the undisturbed run would have seen. Sets that fit in memory are decoded once and kept
as uint8 arrays; each epoch shuffles all of their images (no shuffle buffer), and whole batches are gathered,
augmented and standardised on several threads ahead of the training step. Larger sets are streamed from their
record files.

Pixels are standardised here, not in the model: `input = (pixel / pixel_scale - mean) / std`, with the
per-channel mean and standard deviation of the training images in use (ImageNet's customary constants for
streamed sets).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_largebatch import data_tfds
from tf_largebatch.data_streaming import stream_dataset

Arrays = tuple[np.ndarray, np.ndarray]

EVAL_SPLITS = ("test", "validation")
AUGMENTATIONS = ("auto", "none", "crop_flip", "inception")
DIGITS_TEST_EXAMPLES = 360
VALIDATION_EXAMPLES = 5_000
# Decoded size above which a set is streamed: CIFAR is 0.15 GB, SVHN 0.3 GB, ImageNet at 64 px 15 GB.
IN_MEMORY_BYTES = 2**31


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

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one epoch; the remainder of an epoch is dropped, other images every time."""
        return self.train_size // batch_size

    def train(self, batch_size: int, seed: int = 0, first_epoch: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """Training batches of the epochs `first_epoch`, ..., `epochs - 1`, one after the other.

        Args:
            batch_size: Images in every batch; there are no partial batches.
            seed: With the epoch's number, determines order and augmentation.
            first_epoch: Epochs already done, counted from 0.
            epochs: Epochs of the whole run.

        Returns:
            `steps_per_epoch(batch_size) * (epochs - first_epoch)` elements: images float32
            `(batch_size, *image_shape)`, standardised, and labels int32 `(batch_size,)`.

        Raises:
            ValueError: If the batch is larger than the data set.
        """
        if not 1 <= batch_size <= self.train_size:
            raise ValueError(
                f"batch_size must be from 1 to the {self.train_size} training images of {self.name}; "
                f"received batch_size={batch_size}."
            )
        return self.make_train(batch_size, seed, first_epoch, epochs)

    def evaluation(self, batch_size: int = 1000) -> tf.data.Dataset:
        """Every evaluation image exactly once, in a fixed order; the last batch may be smaller."""
        return self.make_evaluation(min(batch_size, self.eval_size))

    def describe(self) -> dict[str, Any]:
        """What was resolved at loading, as JSON-serialisable values."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.startswith("make_")
        }
        return {**fields, "input": "(pixel / pixel_scale - mean) / std"}


def load(
    name: str = "digits",
    *,
    data_dir: str | None = None,
    download: bool = False,
    eval_split: str = "test",
    validation_examples: int | None = None,
    augment: str = "auto",
    image_size: int | None = None,
) -> Dataset:
    """Loads a data set by name.

    Args:
        name: `"digits"` (scikit-learn's 1,797 real 8x8 digits, always at hand: 1,437 to train and 360 to
            test, a fixed split with equal shares of the classes) or the name of a tensorflow_datasets image
            classification set.
        data_dir: Where tensorflow_datasets finds prepared sets; `TFDS_DATA_DIR`, else its own default.
        download: Whether a set that is not prepared may be downloaded. Off: nothing touches the network.
        eval_split: `"test"`, or `"validation"` to hold out the last training images: for choosing
            hyper-parameters without looking at the test images.
        validation_examples: How many to hold out; 5,000, or a tenth if the set has fewer than 50,000.
        augment: `"crop_flip"` (4 pixels of black, random crop, random horizontal flip), `"inception"`
            (streamed sets: random resized crop of 8 to 100 % of the area, random flip), `"none"`, or
            `"auto"`: crop_flip for the CIFARs, inception for streamed sets, else none.
        image_size: Resize images to this height and width; default: native, 224 for sets without a size.

    Raises:
        ValueError: For an unknown name, a set that is not prepared, or labels outside the classes.
    """
    if eval_split not in EVAL_SPLITS:
        raise ValueError(f"eval_split must be one of {', '.join(EVAL_SPLITS)}; received eval_split={eval_split!r}.")
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}; received augment={augment!r}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1; received image_size={image_size}.")
    if name == "digits":
        train, test = load_digits()
        return from_arrays(
            *_hold_out(train, test, eval_split, validation_examples),
            name=name,
            num_classes=10,
            pixel_scale=16,
            eval_split=eval_split,
            augment="none" if augment == "auto" else augment,
            image_size=image_size,
        )
    return _load_tfds(
        name,
        data_dir=data_dir,
        download=download,
        eval_split=eval_split,
        validation_examples=validation_examples,
        augment=augment,
        image_size=image_size,
    )


def load_digits() -> tuple[Arrays, Arrays]:
    """The digits as ((images, labels), (images, labels)) of train and test: uint8 0..16, int64.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI 1998, as shipped with
    scikit-learn.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    images = digits.images.astype(np.uint8)[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=DIGITS_TEST_EXAMPLES, stratify=digits.target, random_state=0
    )
    return (x_train, y_train), (x_test, y_test)


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
) -> Dataset:
    """A data set of images held in memory.

    Args:
        train: Images, uint8 `(n, height, width, channels)`, and integer labels `(n,)`.
        evaluation: The same, for evaluation.
        name: Shown in messages.
        num_classes: Number of classes; default: one more than the largest training label.
        pixel_scale: The largest possible pixel value.
        eval_split: What `evaluation` is: `"test"` or `"validation"`.
        augment: `"none"` or `"crop_flip"`.
        image_size: Resize (bilinear, after augmentation) to this height and width.

    Raises:
        ValueError: For labels outside the classes, wrong shapes or dtypes.
    """
    if augment not in ("none", "crop_flip"):
        raise ValueError(f"augment must be none or crop_flip for {name}, held in memory; received augment={augment!r}.")
    images, labels = train
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    for part, (x, y) in {"training": train, eval_split: evaluation}.items():
        if x.dtype != np.uint8 or x.ndim != 4 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{part} images of {name} must be uint8 (n, height, width, channels) with (n,) labels; "
                f"received {x.dtype} {x.shape} with {y.shape}."
            )
        check_labels(y, num_classes, f"{part} labels of {name}")
    mean, std = _pixel_statistics(images, pixel_scale)
    size = (image_size, image_size) if image_size else images.shape[1:3]
    finish = _standardise(mean, std, pixel_scale, size)

    def make_train(batch_size: int, seed: int, first_epoch: int, epochs: int) -> tf.data.Dataset:
        return _memory_train(train, batch_size, seed, first_epoch, epochs, augment, finish)

    def make_evaluation(batch_size: int) -> tf.data.Dataset:
        x, y = tf.constant(evaluation[0]), tf.constant(evaluation[1].astype(np.int32))
        batches = tf.data.Dataset.range(len(y)).batch(batch_size)
        take = lambda index: (finish(tf.gather(x, index)), tf.gather(y, index))  # noqa: E731
        return batches.map(take, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

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
    )


def check_labels(labels: np.ndarray, num_classes: int, what: str = "labels") -> None:
    """Raises ValueError, naming the first offender, unless all labels are integers in `[0, num_classes)`."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be integers; received {labels.dtype}.")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{what} must lie in the {num_classes} classes 0 to {num_classes - 1}; "
            f"received {labels[wrong[0]]} at position {wrong[0]}."
        )


def crop_and_flip(images: tf.Tensor, key: tf.Tensor, pad: int = 4) -> tf.Tensor:
    """Pads every image of a batch with `pad` black pixels, crops it at random, flips half of them.

    Args:
        images: uint8 `(batch, height, width, channels)`.
        key: Stateless seed, int64 `(2,)`.
        pad: Pixels added on each side.

    Returns:
        uint8, of the shape of `images`. All `(2 * pad + 1) ** 2` positions are equally likely.
    """
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    offset = tf.random.stateless_uniform([2, batch, 1], key, maxval=2 * pad + 1, dtype=tf.int32, alg="philox")
    flip = tf.random.stateless_uniform([batch, 1], tf.random.fold_in(key, 1, alg="philox"), alg="philox") < 0.5
    columns = tf.range(width)
    # One gather moves rows, one moves and mirrors columns: no loop over the images.
    rows = offset[0] + tf.range(height)
    columns = offset[1] + tf.where(flip, columns[::-1], columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _memory_train(
    arrays: Arrays,
    batch_size: int,
    seed: int,
    first_epoch: int,
    epochs: int,
    augment: str,
    finish: Callable[[tf.Tensor], tf.Tensor],
) -> tf.data.Dataset:
    images, labels = tf.constant(arrays[0]), tf.constant(arrays[1].astype(np.int32))
    size = len(arrays[1])
    steps = size // batch_size

    def indices_of(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(size), key, alg="philox")
        order = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        step = tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((tf.fill([steps], epoch), step, order))

    def batch_of(epoch: tf.Tensor, step: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = tf.gather(images, index)
        if augment == "crop_flip":
            key = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), step, alg="philox")
            chosen = crop_and_flip(chosen, key)
        return finish(chosen), tf.gather(labels, index)

    # The epochs are chained before the map, so batches of the next epoch are prepared during evaluation.
    indices = tf.data.Dataset.range(first_epoch, epochs).flat_map(indices_of)
    return indices.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _standardise(
    mean: tuple[float, ...], std: tuple[float, ...], pixel_scale: float, size: tuple[int, int]
) -> Callable[[tf.Tensor], tf.Tensor]:
    shift = tf.constant(mean, tf.float32) * pixel_scale
    factor = 1.0 / (tf.constant(std, tf.float32) * pixel_scale)

    def finish(images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        if tuple(images.shape[-3:-1]) != tuple(size):
            images = tf.image.resize(images, size)
        return (images - shift) * factor

    return finish


def _pixel_statistics(images: np.ndarray, pixel_scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact per-channel mean and standard deviation, in units of `pixel_scale`, from counts of the values."""
    values = np.arange(256) / pixel_scale
    counts = [np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])]
    mean = [float(np.average(values, weights=count)) for count in counts]
    variance = [np.average((values - m) ** 2, weights=count) for m, count in zip(mean, counts, strict=True)]
    # A constant channel carries nothing: leave its scale alone instead of dividing by zero.
    return tuple(mean), tuple(float(np.sqrt(v)) or 1.0 for v in variance)


def _held_out(train_size: int, validation_examples: int | None) -> int:
    default = min(VALIDATION_EXAMPLES, round(train_size / 10))
    held_out = default if validation_examples is None else validation_examples
    if not 1 <= held_out < train_size:
        raise ValueError(
            f"validation_examples must be from 1 to {train_size - 1}, fewer than the training images; "
            f"received validation_examples={held_out}."
        )
    return held_out


def _hold_out(
    train: Arrays, test: Arrays | None, eval_split: str, validation_examples: int | None
) -> tuple[Arrays, Arrays]:
    if eval_split == "test":
        return train, test
    held_out = _held_out(len(train[1]), validation_examples)
    return (train[0][:-held_out], train[1][:-held_out]), (train[0][-held_out:], train[1][-held_out:])


def _load_tfds(
    name: str,
    *,
    data_dir: str | None,
    download: bool,
    eval_split: str,
    validation_examples: int | None,
    augment: str,
    image_size: int | None,
) -> Dataset:
    import tensorflow_datasets as tfds

    builder = data_tfds.prepared_builder(name, data_dir, download)
    info = builder.info
    image_key, label_key = data_tfds.image_and_label(name, info.features)
    feature = info.features[image_key]
    num_classes = info.features[label_key].num_classes
    test_split = data_tfds.test_split(name, info.splits)
    train_size = info.splits["train"].num_examples
    pixels = np.prod([d or np.inf for d in feature.shape])
    if train_size * pixels > IN_MEMORY_BYTES:
        held_out = _held_out(train_size, validation_examples) if eval_split == "validation" else 0
        size = image_size or feature.shape[0] or 224
        return Dataset(
            **stream_dataset(
                builder,
                image_key=image_key,
                label_key=label_key,
                train_split=f"train[:{train_size - held_out}]",
                eval_split=f"train[{train_size - held_out}:]" if held_out else test_split,
                augment="inception" if augment == "auto" else augment,
                image_size=size,
            ),
            name=name,
            num_classes=num_classes,
            eval_split=eval_split,
        )

    def read(split: str) -> Arrays:
        arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        return arrays[image_key], arrays[label_key]

    train = read("train")
    test = read(test_split) if eval_split == "test" else None
    default = "crop_flip" if name.split("/")[0].split(":")[0] in ("cifar10", "cifar100") else "none"
    return from_arrays(
        *_hold_out(train, test, eval_split, validation_examples),
        name=name,
        num_classes=num_classes,
        eval_split=eval_split,
        augment=default if augment == "auto" else augment,
        image_size=image_size,
    )
