"""The data sets that are known by name: one row of `SETS` each.

Every image classification set of tensorflow_datasets can be loaded; a row says what differs from the usual. To add a
set that is not in tensorflow_datasets, write a function that returns its arrays and add a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tf_largebatch.check import require
from tf_largebatch.data.digits import load_digits
from tf_largebatch.data.memory import Arrays
from tf_largebatch.data.npz import is_npz


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """A row of the table.

    Attributes:
        arrays: Returns ((images, labels), (images, labels)) of train and test: uint8 `(n, height, width, channels)`
            and integers `(n,)`. None for a set of tensorflow_datasets.
        num_classes: Number of classes, of a set with `arrays`.
        pixel_scale: The largest possible pixel value, of a set with `arrays`.
        augment: What augment="auto" means while the set fits in memory.
        test_splits: Splits of tensorflow_datasets to report accuracy on, the first that exists.
    """

    arrays: Callable[[], tuple[Arrays, Arrays]] | None = None
    num_classes: int | None = None
    pixel_scale: float = 255.0
    augment: str = "none"
    test_splits: tuple[str, ...] = ("test", "validation")


# The name of the images in --data_dir.
FOLDER = "folder"

SETS: dict[str, KnownSet] = {
    "digits": KnownSet(load_digits, num_classes=10, pixel_scale=16.0),
    "mnist": KnownSet(),
    "fashion_mnist": KnownSet(),
    "cifar10": KnownSet(augment="crop_flip"),
    "cifar100": KnownSet(augment="crop_flip"),
    "svhn_cropped": KnownSet(),
    # The test labels were never published: papers report accuracy on the validation split.
    "imagenet2012": KnownSet(test_splits=("validation", "test")),
}


def known_set(name: str) -> KnownSet:
    """Returns the row of a set; of any other set of tensorflow_datasets, a row without peculiarities.

    Args:
        name: As `tfds.builder` takes it, with configuration and version if wanted.
    """
    return SETS.get(name) or SETS.get(name.split("/")[0].split(":")[0]) or KnownSet()


def is_built_in(name: str) -> bool:
    """Returns whether the set comes without tensorflow_datasets and without a directory."""
    return is_npz(name) or (name in SETS and SETS[name].arrays is not None)


def check_applicable(
    name: str, data_dir: str | None, download: bool, eval_split: str, validation_examples: int | None
) -> None:
    """Refuses arguments of `load` that the set would ignore.

    Raises:
        ValueError: In one sentence that names the argument, its value and what it applies to.
    """
    built_in, own_directory = is_built_in(name), name == FOLDER
    rule, prepared = f"left out with dataset={name}", "sets of tensorflow_datasets"
    remedy = f"it applies to dataset={FOLDER} and {prepared}"
    require(not data_dir or not built_in, "data_dir", data_dir, rule, remedy)
    require(not download or not (built_in or own_directory), "download", download, rule, f"it applies to {prepared}")
    require(
        validation_examples is None or eval_split == "validation" or own_directory or is_npz(name),
        "validation_examples",
        validation_examples,
        f"left out with eval_split={eval_split}",
        "it applies to eval_split=validation, and to files without test images",
    )
