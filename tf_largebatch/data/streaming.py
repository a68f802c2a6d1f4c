"""Data sets too large for memory, decoded during training: record files of tensorflow_datasets, and image files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_largebatch.check import require
from tf_largebatch.data.folder import Part

# Customary per-channel constants of ImageNet's training images, in units of 255.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Encoded images shuffled together, besides the shuffled shards: about 1 GB of ImageNet, twice that while the next
# block is read.
SHUFFLE_BLOCK = 8_192
INTERLEAVED_FILES = 16


def stream_dataset(
    builder: Any,
    *,
    image_key: str,
    label_key: str,
    train_split: str,
    eval_split: str,
    augment: str,
    image_size: int,
    standardize: bool = True,
) -> dict[str, Any]:
    """Returns the fields of a `data.Dataset` that reads the TFRecord files of a prepared builder.

    Every epoch draws its own order of shards and of images within a block, its own crops and flips, all from
    (seed, epoch, position), so any epoch can be reproduced by itself.

    Args:
        builder: A prepared `tfds.core.DatasetBuilder` of TFRecord files.
        image_key: Name of the image feature.
        label_key: Name of the label feature.
        train_split: Split to train on, as tensorflow_datasets writes it.
        eval_split: Split to evaluate on.
        augment: `"inception"` or `"none"` (central crop, as in evaluation).
        image_size: Height and width of what the model sees.
        standardize: Whether it sees standardized images, not pixels.

    Raises:
        ValueError: For another augmentation or another file format.
    """
    import tensorflow_datasets as tfds

    info = builder.info
    require(augment in ("inception", "none"), "augment", augment, "inception or none for streamed sets")
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"dataset {info.name!r} must be prepared as TFRecord files to be streamed; "
            f"received file format {info.file_format.value}."
        )
    num_classes = info.features[label_key].num_classes

    def example(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        decoders = {image_key: tfds.decode.SkipDecoding()}
        parsed = info.features.deserialize_example(record, decoders=decoders)
        label = tf.cast(parsed[label_key], tf.int32)
        wrong = f"labels of {info.name} must lie in the {num_classes} classes 0 to {num_classes - 1}"
        with tf.control_dependencies([tf.debugging.Assert((label >= 0) & (label < num_classes), [wrong, label])]):
            return parsed[image_key], tf.identity(label)

    train_files, eval_files = (_files(info.splits[split]) for split in (train_split, eval_split))

    def shuffled_records(key: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.size(train_files[0])), key, alg="philox")

        # Not Dataset.shuffle: with a global seed set it refuses a seed that depends on the epoch.
        def shuffled(block: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
            block_key = tf.random.fold_in(key, block, alg="philox")
            return tf.random.experimental.stateless_shuffle(records, block_key, alg="philox")

        shards = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(column, order) for column in train_files))
        return _read(shards).batch(SHUFFLE_BLOCK).enumerate().map(shuffled).prefetch(1).unbatch()

    return _streamed(
        shuffled_records,
        lambda: _read(tf.data.Dataset.from_tensor_slices(eval_files)),
        example,
        train_size=info.splits[train_split].num_examples,
        eval_size=info.splits[eval_split].num_examples,
        augment=augment,
        image_size=image_size,
        channels=info.features[image_key].shape[-1],
        # Images of one common size were cropped when the set was made.
        fraction=1.0 if info.features[image_key].shape[0] else 0.875,
        standardize=standardize,
    )


def stream_folder(
    train: Part, evaluation: Part, *, augment: str, image_size: int, channels: int, standardize: bool = True
) -> dict[str, Any]:
    """Returns the fields of a `data.Dataset` that reads image files; see `stream_dataset`.

    Args:
        train: Images to train on.
        evaluation: Images to evaluate on.
        augment: `"inception"` or `"none"`.
        image_size: Height and width of what the model sees.
        channels: 1 or 3.
        standardize: Whether the model sees standardized images, not pixels.
    """
    require(augment in ("inception", "none"), "augment", augment, "inception or none for streamed sets")
    paths, labels = tf.constant(train.paths), tf.constant(train.labels.astype(np.int32))

    def shuffled_records(key: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(tf.size(labels)), key, alg="philox")
        return tf.data.Dataset.from_tensor_slices((tf.gather(paths, order), tf.gather(labels, order)))

    return _streamed(
        lambda key: shuffled_records(key).map(_pair),
        lambda: tf.data.Dataset.from_tensor_slices((list(evaluation.paths), evaluation.labels.astype(np.int32))).map(
            _pair
        ),
        lambda record: (tf.io.read_file(record["path"]), record["label"]),
        train_size=len(train.labels),
        eval_size=len(evaluation.labels),
        augment=augment,
        image_size=image_size,
        channels=channels,
        fraction=0.875,
        standardize=standardize,
    )


def _pair(path: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"path": path, "label": label}


def _streamed(
    shuffled_records: Callable[[tf.Tensor], tf.data.Dataset],
    evaluation_records: Callable[[], tf.data.Dataset],
    example: Callable[[Any], tuple[tf.Tensor, tf.Tensor]],
    *,
    train_size: int,
    eval_size: int,
    augment: str,
    image_size: int,
    channels: int,
    fraction: float,
    standardize: bool,
) -> dict[str, Any]:
    """Returns the fields of a `data.Dataset`.

    Args:
        shuffled_records: Returns the training records in the order of a key, int64 `(2,)`.
        evaluation_records: Returns the records to evaluate on.
        example: Returns the encoded image and the label of a record.
        train_size: Number of training records.
        eval_size: Number of records to evaluate on.
        augment: `"inception"` or `"none"`.
        image_size: Height and width of what the model sees.
        channels: 1 or 3.
        fraction: See `central_crop`.
        standardize: Whether the model sees standardized images, not pixels.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    if not standardize:
        mean, std = (0.0,) * channels, (1 / 255,) * channels

    def standardized(image: tf.Tensor) -> tf.Tensor:
        image = tf.ensure_shape(image, (image_size, image_size, channels))
        return (image / 255.0 - tf.constant(mean)) / tf.constant(std)

    def make_train(batch_size: int, seed: int, first_epoch: int, epochs: int) -> tf.data.Dataset:
        used = train_size // batch_size * batch_size

        def records_of(epoch: tf.Tensor) -> tf.data.Dataset:
            records = shuffled_records(tf.stack([tf.constant(seed, tf.int64), epoch]))
            return records.take(used).enumerate().map(lambda position, record: (epoch, position, record))

        def decode(epoch: tf.Tensor, position: tf.Tensor, record: Any) -> tuple[tf.Tensor, tf.Tensor]:
            image, label = example(record)
            key = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), position, alg="philox")
            if augment == "inception":
                return standardized(random_resized_crop(image, image_size, channels, key)), label
            return standardized(central_crop(image, image_size, channels, fraction)), label

        records = tf.data.Dataset.range(first_epoch, epochs).flat_map(records_of)
        decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return decoded.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def make_evaluation(batch_size: int) -> tf.data.Dataset:
        def decode(record: Any) -> tuple[tf.Tensor, tf.Tensor]:
            image, label = example(record)
            return standardized(central_crop(image, image_size, channels, fraction)), label

        decoded = evaluation_records().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return decoded.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return {
        "image_shape": (image_size, image_size, channels),
        "train_size": train_size,
        "eval_size": eval_size,
        "augment": augment,
        "pixel_scale": 255.0,
        "mean": mean,
        "std": std,
        "make_train": make_train,
        "make_evaluation": make_evaluation,
    }


def random_resized_crop(encoded: tf.Tensor, size: int, channels: int, key: tf.Tensor) -> tf.Tensor:
    """Crops 8 to 100 % of the area at random, aspect 3/4 to 4/3, resizes, and flips with probability 1/2.

    Source: C. Szegedy et al., "Going Deeper with Convolutions", 2015, section 6.

    Args:
        encoded: JPEG or PNG bytes, a scalar string.
        size: Height and width of the result, pixels.
        channels: 1 or 3.
        key: Stateless seed, int64 `(2,)`.

    Returns:
        float32 `(size, size, channels)`, 0 to 255.
    """

    def crop(shape: tf.Tensor) -> tf.Tensor:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            key,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.stack([begin[0], begin[1], extent[0], extent[1]])

    image = _decode_window(encoded, channels, crop)
    image = tf.image.resize(image, [size, size])
    return tf.image.stateless_random_flip_left_right(image, tf.random.fold_in(key, 1, alg="philox"))


def central_crop(encoded: tf.Tensor, size: int, channels: int, fraction: float = 0.875) -> tf.Tensor:
    """Resizes the central square of `fraction` of the shorter side to `size`: customarily 224 of 256 pixels.

    Args:
        encoded: JPEG or PNG bytes, a scalar string.
        size: Height and width of the result, pixels.
        channels: 1 or 3.
        fraction: Side of the square, as a fraction of the shorter side.

    Returns:
        float32 `(size, size, channels)`, 0 to 255.
    """

    def crop(shape: tf.Tensor) -> tf.Tensor:
        height, width = shape[0], shape[1]
        side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * fraction), tf.int32)
        side = tf.maximum(side, 1)
        return tf.stack([(height - side) // 2, (width - side) // 2, side, side])

    return tf.image.resize(_decode_window(encoded, channels, crop), [size, size])


def _decode_window(encoded: tf.Tensor, channels: int, window: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Decodes only the window of a JPEG; other formats are decoded whole and cropped."""

    def jpeg() -> tf.Tensor:
        shape = tf.image.extract_jpeg_shape(encoded)
        return tf.image.decode_and_crop_jpeg(encoded, window(shape), channels=channels)

    def other() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image.set_shape((None, None, channels))
    return image


def _files(split: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the files of a split, and of each the records to skip and to take (-1 for all)."""
    columns = zip(*((str(i.filename), max(i.skip, 0), i.take) for i in split.file_instructions), strict=True)
    names, skips, takes = columns
    return tf.constant(names), tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)


def _read(shards: tf.data.Dataset) -> tf.data.Dataset:
    return shards.interleave(
        lambda name, skip, take: tf.data.TFRecordDataset(name).skip(skip).take(take),
        cycle_length=INTERLEAVED_FILES,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
