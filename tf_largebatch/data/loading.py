"""Loads a data set by name: built-in arrays, a NumPy file, a directory of images, or a set of tensorflow_datasets."""

from __future__ import annotations

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data import folder, npz, philox
from tf_largebatch.data import tfds as prepared
from tf_largebatch.data.batches import tensorflow_is_installed
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.memory import Arrays, from_arrays
from tf_largebatch.data.sets import FOLDER, SETS, known_set

EVAL_SPLITS = ("test", "validation")
AUGMENTATIONS = ("auto", "none", "crop_flip", "random", "inception")
VALIDATION_EXAMPLES = 5_000
# Decoded size above which a set is streamed: CIFAR has 0.15 GB, SVHN 0.3 GB, ImageNet at 64 px 15 GB.
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
    standardize: bool = True,
) -> Dataset:
    """Loads a data set by name.

    Args:
        name: `"digits"` (scikit-learn's 1,797 real 8x8 digits, installed with it: 1,437 to train and 360 to test),
            `"folder"` (the images of `data_dir`), the path of an .npz file (see `load_npz`), or the name of an image
            classification set of tensorflow_datasets.
        data_dir: Of `"folder"`, the directory of images (see `find_images`). Of other names, the directory of
            prepared tensorflow_datasets; by default `TFDS_DATA_DIR`, then their own default.
        download: Whether a set that is not prepared may be downloaded. Without it nothing uses the network.
        eval_split: `"test"`, or `"validation"` to hold out training images: for choosing hyper-parameters without
            looking at the test images. A file or a directory without test images is evaluated on validation images.
        validation_examples: How many to hold out; by default 5,000, or a tenth of fewer than 50,000.
        augment: `"crop_flip"` (4 pixels of black, random crop, random horizontal flip), `"random"` (see
            `augmentation.random_layers`), `"inception"`
            (streamed sets: random resized crop of 8 to 100 % of the area, random flip), `"none"`, or
            `"auto"`: crop_flip for the CIFARs, inception for streamed sets, else none.
        image_size: Resize images to this height and width; by default they keep their size, or get 224 pixels if they
            have different sizes.
        standardize: Whether the model sees standardized images; else it sees pixels as they are stored.

    Raises:
        ValueError: For an unknown name, a set that is not prepared, or labels outside the classes.
    """
    require(eval_split in EVAL_SPLITS, "eval_split", eval_split, f"one of {', '.join(EVAL_SPLITS)}")
    require(augment in AUGMENTATIONS, "augment", augment, f"one of {', '.join(AUGMENTATIONS)}")
    require(image_size is None or image_size >= 1, "image_size", image_size, "at least 1")
    if name == FOLDER:
        return _load_folder(data_dir, eval_split, validation_examples, augment, image_size, standardize)
    if npz.is_npz(name):
        train, test, class_names = npz.load_npz(name)
        return _from_files(
            name,
            train,
            {} if test is None else {"test": test},
            class_names,
            eval_split=eval_split,
            validation_examples=validation_examples,
            augment=augment,
            image_size=image_size,
            standardize=standardize,
        )
    known = known_set(name)
    if known.arrays is None:
        require(
            tensorflow_is_installed(),
            "dataset",
            name,
            f"{', '.join(key for key, row in SETS.items() if row.arrays)}, {FOLDER} or an .npz file",
            "sets of tensorflow_datasets need TensorFlow: pip install tensorflow tensorflow-datasets",
        )
        return _load_tfds(
            name,
            data_dir=data_dir,
            download=download,
            eval_split=eval_split,
            validation_examples=validation_examples,
            augment=augment,
            image_size=image_size,
            standardize=standardize,
        )
    train, test = known.arrays()
    return from_arrays(
        *_hold_out(train, test if eval_split == "test" else None, validation_examples),
        name=name,
        num_classes=known.num_classes,
        pixel_scale=known.pixel_scale,
        eval_split=eval_split,
        augment=known.augment if augment == "auto" else augment,
        image_size=image_size,
        standardize=standardize,
    )


def _from_files(
    name: str,
    train: Arrays,
    others: dict[str, Arrays],
    class_names: tuple[str, ...] | None,
    *,
    eval_split: str,
    validation_examples: int | None,
    augment: str,
    image_size: int | None,
    standardize: bool,
) -> Dataset:
    """Makes a data set of arrays from files, which may come sorted by class.

    Args:
        name: Its name.
        train: Images and labels to train on.
        others: Those of the other parts, by name.
        class_names: Names of the classes.
        eval_split: As of `load`.
        validation_examples: As of `load`.
        augment: As of `load`.
        image_size: As of `load`.
        standardize: As of `load`.
    """
    split = eval_split if eval_split in others else "validation"
    if split not in others:
        order = philox.permutation((0, 0), len(train[1]))
        train = train[0][order], train[1][order]
    return from_arrays(
        *_hold_out(train, others.get(split), validation_examples),
        name=name,
        num_classes=None if class_names is None else len(class_names),
        eval_split=split,
        augment="none" if augment == "auto" else augment,
        image_size=image_size,
        class_names=class_names,
        standardize=standardize,
    )


def _load_folder(
    data_dir: str | None,
    eval_split: str,
    validation_examples: int | None,
    augment: str,
    image_size: int | None,
    standardize: bool,
) -> Dataset:
    require(data_dir is not None, "data_dir", data_dir, f"given with dataset={FOLDER}")
    found = folder.find_images(str(data_dir))
    size = (image_size, image_size) if image_size else found.size or (folder.DEFAULT_SIZE,) * 2
    parts = {"train": found.train, **found.evaluation}
    images = sum(len(part.labels) for part in parts.values())
    if images * np.prod(size) * found.channels > IN_MEMORY_BYTES:
        return _stream_folder(found, parts, size[0], eval_split, validation_examples, augment, standardize)
    arrays = {name: folder.read_part(part, size, found.channels) for name, part in parts.items()}
    train = arrays.pop("train")
    return _from_files(
        FOLDER,
        train,
        arrays,
        found.class_names,
        eval_split=eval_split,
        validation_examples=validation_examples,
        augment=augment,
        image_size=None,
        standardize=standardize,
    )


def _stream_folder(
    found: folder.Folder,
    parts: dict[str, folder.Part],
    image_size: int,
    eval_split: str,
    validation_examples: int | None,
    augment: str,
    standardize: bool,
) -> Dataset:
    """Makes a data set of image files that do not fit in memory."""
    if not tensorflow_is_installed():
        raise ValueError(
            f"dataset={FOLDER} must fit in {IN_MEMORY_BYTES / 2**30:g} GiB where TensorFlow is not installed: pass a "
            "smaller image_size, or pip install tensorflow, which reads the files during training."
        )
    from tf_largebatch.data.streaming import stream_folder

    split = eval_split if eval_split in parts else "validation"
    train, evaluation = parts["train"], parts.get(split)
    if evaluation is None:
        order = philox.permutation((0, 0), len(train.labels))
        held_out = _held_out(len(order), validation_examples)
        train, evaluation = train.at(order[:-held_out]), train.at(order[-held_out:])
    return Dataset(
        **stream_folder(
            train,
            evaluation,
            augment="inception" if augment == "auto" else augment,
            image_size=image_size,
            channels=found.channels,
            standardize=standardize,
        ),
        name=FOLDER,
        num_classes=len(found.class_names),
        eval_split=split,
        class_names=found.class_names,
    )


def _held_out(train_size: int, validation_examples: int | None) -> int:
    default = min(VALIDATION_EXAMPLES, max(1, round(train_size / 10)))
    held_out = default if validation_examples is None else validation_examples
    require(
        1 <= held_out < train_size,
        "validation_examples",
        held_out,
        f"from 1 to {train_size - 1}, fewer than the training images",
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
    standardize: bool,
) -> Dataset:
    import tensorflow_datasets as tfds

    from tf_largebatch.data.streaming import stream_dataset

    known = known_set(name)
    builder = prepared.prepared_builder(name, data_dir, download)
    info = builder.info
    image_key, label_key = prepared.image_and_label(name, info.features)
    feature = info.features[image_key]
    num_classes, class_names = info.features[label_key].num_classes, tuple(info.features[label_key].names)
    test_split = prepared.test_split(name, info.splits, known.test_splits)
    train_size = info.splits["train"].num_examples
    pixels = np.prod([d or np.inf for d in feature.shape])
    if train_size * pixels > IN_MEMORY_BYTES:
        held_out = _held_out(train_size, validation_examples) if eval_split == "validation" else 0
        return Dataset(
            **stream_dataset(
                builder,
                image_key=image_key,
                label_key=label_key,
                train_split=f"train[:{train_size - held_out}]",
                eval_split=f"train[{train_size - held_out}:]" if held_out else test_split,
                augment="inception" if augment == "auto" else augment,
                image_size=image_size or feature.shape[0] or 224,
                standardize=standardize,
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
    return from_arrays(
        *_hold_out(train, test, validation_examples),
        name=name,
        num_classes=num_classes,
        eval_split=eval_split,
        augment=known.augment if augment == "auto" else augment,
        image_size=image_size,
        class_names=class_names,
        standardize=standardize,
    )
