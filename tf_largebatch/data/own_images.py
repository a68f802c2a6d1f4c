"""Data sets from files of one's own: what is trained on and what is held out."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data import folder, memory, philox
from tf_largebatch.data.batches import tensorflow_is_installed
from tf_largebatch.data.dataset import Dataset
from tf_largebatch.data.memory import Arrays, from_arrays
from tf_largebatch.data.sets import FOLDER
from tf_largebatch.files import local_path

VALIDATION_EXAMPLES = 5_000


def from_files(
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
    _check_held_out(validation_examples, split, others)
    if split not in others:
        order = philox.permutation((0, 0), len(train[1]))
        train = train[0][order], train[1][order]
    return from_arrays(
        *hold_out(train, others.get(split), validation_examples),
        name=name,
        num_classes=None if class_names is None else len(class_names),
        eval_split=split,
        augment="none" if augment == "auto" else augment,
        image_size=image_size,
        class_names=class_names,
        standardize=standardize,
    )


def load_folder(
    data_dir: str | None,
    eval_split: str,
    validation_examples: int | None,
    augment: str,
    image_size: int | None,
    standardize: bool,
) -> Dataset:
    """Loads the images of a directory; see `load`."""
    require(data_dir is not None, "data_dir", data_dir, f"given with dataset={FOLDER}")
    found = folder.find_images(str(data_dir))
    name = local_path(str(data_dir), "data_dir").absolute().name or FOLDER
    size = (image_size, image_size) if image_size else found.size or (folder.DEFAULT_SIZE,) * 2
    parts = {"train": found.train, **found.evaluation}
    images = sum(len(part.labels) for part in parts.values())
    if images * np.prod(size) * found.channels > memory.IN_MEMORY_BYTES:
        return _stream_folder(name, found, parts, size[0], eval_split, validation_examples, augment, standardize)
    arrays = {name: folder.read_part(part, size, found.channels) for name, part in parts.items()}
    train = arrays.pop("train")
    return from_files(
        name,
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
    name: str,
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
            f"dataset={FOLDER} must fit in {memory.IN_MEMORY_BYTES / 2**30:g} GiB where TensorFlow is not installed: "
            "pass a smaller image_size, or pip install tensorflow, which reads the files during training."
        )
    from tf_largebatch.data.streaming import stream_folder

    split = eval_split if eval_split in parts else "validation"
    _check_held_out(validation_examples, split, parts)
    train, evaluation = parts["train"], parts.get(split)
    if evaluation is None:
        order = philox.permutation((0, 0), len(train.labels))
        held_out = held_out_count(len(order), validation_examples)
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
        name=name,
        num_classes=len(found.class_names),
        eval_split=split,
        class_names=found.class_names,
    )


def _check_held_out(validation_examples: int | None, split: str, parts: Collection[str]) -> None:
    require(
        validation_examples is None or split not in parts,
        "validation_examples",
        validation_examples,
        f"left out where there are {split} images",
        "none are held out",
    )


def held_out_count(train_size: int, validation_examples: int | None) -> int:
    """Returns how many training images to hold out; see `load`."""
    default = min(VALIDATION_EXAMPLES, max(1, round(train_size / 10)))
    held_out = default if validation_examples is None else validation_examples
    require(
        1 <= held_out < train_size,
        "validation_examples",
        held_out,
        f"from 1 to {train_size - 1}, fewer than the training images",
    )
    return held_out


def hold_out(train: Arrays, test: Arrays | None, validation_examples: int | None) -> tuple[Arrays, Arrays]:
    """Returns what to train on and what to evaluate on: the test images, else the last training images."""
    if test is not None:
        return train, test
    held_out = held_out_count(len(train[1]), validation_examples)
    return (train[0][:-held_out], train[1][:-held_out]), (train[0][-held_out:], train[1][-held_out:])
