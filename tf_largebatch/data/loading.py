"""Loads a data set by name: built-in arrays, a NumPy file, a directory of images, or a set of tensorflow_datasets."""

from __future__ import annotations

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data import memory, npz
from tf_largebatch.data import tfds as prepared
from tf_largebatch.data.batches import tensorflow_is_installed
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.memory import Arrays, from_arrays
from tf_largebatch.data.own_images import from_files, held_out_count, hold_out, load_folder
from tf_largebatch.data.sets import FOLDER, SETS, check_applicable, known_set

EVAL_SPLITS = ("test", "validation")
AUGMENTATIONS = ("auto", "none", "crop_flip", "random", "inception")


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
        ValueError: For an unknown name, a set that is not prepared, an argument that the set would ignore, or labels
            outside the classes.
    """
    require(eval_split in EVAL_SPLITS, "eval_split", eval_split, f"one of {', '.join(EVAL_SPLITS)}")
    require(augment in AUGMENTATIONS, "augment", augment, f"one of {', '.join(AUGMENTATIONS)}")
    require(image_size is None or image_size >= 1, "image_size", image_size, "at least 1")
    check_applicable(name, data_dir, download, eval_split, validation_examples)
    if name == FOLDER:
        return load_folder(data_dir, eval_split, validation_examples, augment, image_size, standardize)
    if npz.is_npz(name):
        train, test, class_names = npz.load_npz(name)
        return from_files(
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
        *hold_out(train, test if eval_split == "test" else None, validation_examples),
        name=name,
        num_classes=known.num_classes,
        pixel_scale=known.pixel_scale,
        eval_split=eval_split,
        augment=known.augment if augment == "auto" else augment,
        image_size=image_size,
        standardize=standardize,
    )


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
    if train_size * pixels > memory.IN_MEMORY_BYTES:
        held_out = held_out_count(train_size, validation_examples) if eval_split == "validation" else 0
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
        with prepared.naming_damaged_records(name, builder.data_dir, reading=True):
            arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        return arrays[image_key], arrays[label_key]

    train = read("train")
    test = read(test_split) if eval_split == "test" else None
    return from_arrays(
        *hold_out(train, test, validation_examples),
        name=name,
        num_classes=num_classes,
        eval_split=eval_split,
        augment=known.augment if augment == "auto" else augment,
        image_size=image_size,
        class_names=class_names,
        standardize=standardize,
    )
