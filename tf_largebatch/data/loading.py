"""Loads a data set by name: real digits built in, the rest through tensorflow_datasets."""

from __future__ import annotations

import numpy as np

from tf_largebatch.data import tfds as prepared
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.memory import Arrays, from_arrays
from tf_largebatch.data.streaming import stream_dataset

EVAL_SPLITS = ("test", "validation")
AUGMENTATIONS = ("auto", "none", "crop_flip", "inception")
DIGITS_TEST_EXAMPLES = 360
VALIDATION_EXAMPLES = 5_000
# Decoded size above which a set is streamed: CIFAR is 0.15 GB, SVHN 0.3 GB, ImageNet at 64 px 15 GB.
IN_MEMORY_BYTES = 2**31


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
            *_hold_out(train, test if eval_split == "test" else None, validation_examples),
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


def _held_out(train_size: int, validation_examples: int | None) -> int:
    default = min(VALIDATION_EXAMPLES, round(train_size / 10))
    held_out = default if validation_examples is None else validation_examples
    if not 1 <= held_out < train_size:
        raise ValueError(
            f"validation_examples must be from 1 to {train_size - 1}, fewer than the training images; "
            f"received validation_examples={held_out}."
        )
    return held_out


def _hold_out(train: Arrays, test: Arrays | None, validation_examples: int | None) -> tuple[Arrays, Arrays]:
    if test is not None:
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

    builder = prepared.prepared_builder(name, data_dir, download)
    info = builder.info
    image_key, label_key = prepared.image_and_label(name, info.features)
    feature = info.features[image_key]
    num_classes, class_names = info.features[label_key].num_classes, tuple(info.features[label_key].names)
    test_split = prepared.test_split(name, info.splits)
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
            class_names=class_names,
        )

    def read(split: str) -> Arrays:
        arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        return arrays[image_key], arrays[label_key]

    train = read("train")
    test = read(test_split) if eval_split == "test" else None
    default = "crop_flip" if name.split("/")[0].split(":")[0] in ("cifar10", "cifar100") else "none"
    return from_arrays(
        *_hold_out(train, test, validation_examples),
        name=name,
        num_classes=num_classes,
        eval_split=eval_split,
        augment=default if augment == "auto" else augment,
        image_size=image_size,
        class_names=class_names,
    )
