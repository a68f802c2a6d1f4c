"""Data sets that fit in memory: uint8 arrays, shuffled whole, augmented and standardized batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_largebatch.check import require
from tf_largebatch.data.dataset import Dataset

Arrays = tuple[np.ndarray, np.ndarray]


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
) -> Dataset:
    """Makes a data set of images in memory.

    Args:
        train: Images, uint8 `(n, height, width, channels)`, and integer labels `(n,)`.
        evaluation: Images and labels to evaluate on, in the same form.
        name: Its name, for messages.
        num_classes: Number of classes; by default one more than the largest training label.
        pixel_scale: The largest possible pixel value.
        eval_split: What `evaluation` is: `"test"` or `"validation"`.
        augment: `"none"` or `"crop_flip"`.
        image_size: Resize (bilinear, after augmentation) to this height and width.
        class_names: Names of the classes.

    Raises:
        ValueError: For labels outside the classes, wrong shapes or dtypes.
    """
    require(
        augment in ("none", "crop_flip"), "augment", augment, f"none or crop_flip for {name}, which is held in memory"
    )
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
    finish = _standardize(mean, std, pixel_scale, size)

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
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{what} must lie in the {num_classes} classes 0 to {num_classes - 1}; "
            f"received {labels[wrong[0]]} at position {wrong[0]}."
        )


def crop_and_flip(images: tf.Tensor, key: tf.Tensor, pad: int = 4) -> tf.Tensor:
    """Pads every image of a batch with `pad` black pixels, crops it at random, and flips it with probability 1/2.

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


def _standardize(
    mean: tuple[float, ...], std: tuple[float, ...], pixel_scale: float, size: tuple[int, int]
) -> Callable[[tf.Tensor], tf.Tensor]:
    offset = tf.constant(mean, tf.float32) * pixel_scale
    factor = 1.0 / (tf.constant(std, tf.float32) * pixel_scale)

    def finish(images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        if tuple(images.shape[-3:-1]) != tuple(size):
            images = tf.image.resize(images, size)
        return (images - offset) * factor

    return finish


def _pixel_statistics(images: np.ndarray, pixel_scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the exact mean and standard deviation of each channel, in units of `pixel_scale`."""
    values = np.arange(256) / pixel_scale
    counts = [np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])]
    mean = [float(np.average(values, weights=count)) for count in counts]
    variance = [np.average((values - m) ** 2, weights=count) for m, count in zip(mean, counts, strict=True)]
    # A constant channel carries nothing: leave its scale alone instead of dividing by zero.
    return tuple(mean), tuple(float(np.sqrt(v)) or 1.0 for v in variance)
