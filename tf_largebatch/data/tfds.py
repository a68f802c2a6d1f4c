"""Finding prepared sets of tensorflow_datasets, and saying what to do where there is none (see `data.py`)."""

from __future__ import annotations

import difflib
import os
from typing import Any

# Named in messages; every other image classification set of tensorflow_datasets works too.
WELL_KNOWN = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", "imagenet2012")
# Sets whose test labels were never published: papers report their validation split.
UNLABELLED_TEST = ("imagenet2012",)


def prepared_builder(name: str, data_dir: str | None, download: bool) -> Any:
    """The tensorflow_datasets builder of `name`, with its files in place.

    Args:
        name: As `tfds.builder` takes it, with configuration and version if wanted.
        data_dir: Directory of prepared sets; default: `TFDS_DATA_DIR`, else tensorflow_datasets' own.
        download: Whether a set that is not prepared may be downloaded.

    Raises:
        ValueError: For an unknown name or a set that is not prepared; the message says what to do.
    """
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:
        near = difflib.get_close_matches(name, ["digits", *tfds.list_builders()], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"dataset must be one of {', '.join(WELL_KNOWN)} or another image classification set of "
            f"tensorflow_datasets; received dataset={name!r}{hint}."
        ) from error
    if builder.is_prepared():
        return builder
    if not download:
        place = f"in {data_dir}" if data_dir else "in the default directory of tensorflow_datasets"
        raise ValueError(
            f"dataset {name!r} is not prepared {place}: run `tfds build {name}` or pass --download where "
            f"there is a network, or point TFDS_DATA_DIR or --data_dir at a directory that holds it."
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"dataset {name!r} could not be downloaded and prepared: {reason}.") from error
    return builder


def image_and_label(name: str, features: Any) -> tuple[str, str]:
    """Names of the one image and of the class label among a set's features."""
    import tensorflow_datasets as tfds

    keys = dict(features.items()) if hasattr(features, "items") else {}
    images = [key for key, feature in keys.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in keys.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else next(iter(labels), None)
    if len(images) != 1 or label is None:
        raise ValueError(
            f"dataset must have one image and a class label; received dataset={name!r} with the features "
            f"{', '.join(keys) or type(features).__name__}."
        )
    return images[0], label


def test_split(name: str, splits: Any) -> str:
    """Name of the split to report accuracy on, beside a split named train."""
    unlabelled = name.split("/")[0].split(":")[0] in UNLABELLED_TEST
    for split in ("validation", "test") if unlabelled else ("test", "validation"):
        if split in splits and "train" in splits:
            return split
    raise ValueError(
        f"dataset must have a train and a test or validation split; received dataset={name!r} with the "
        f"splits {', '.join(splits)}."
    )
