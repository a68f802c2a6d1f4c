"""Finds prepared sets of tensorflow_datasets, their images, labels and splits."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tf_largebatch.check import reason_of
from tf_largebatch.data.sets import SETS
from tf_largebatch.files import DamagedFile, local_path

# Addresses that tensorflow_datasets and TensorFlow can both read.
_REMOTE = "gs://"


def prepared_builder(name: str, data_dir: str | None, download: bool) -> Any:
    """Returns the tensorflow_datasets builder of a set whose files are there.

    Args:
        name: As `tfds.builder` takes it, with configuration and version if wanted.
        data_dir: Directory of prepared sets; by default `TFDS_DATA_DIR`, then tensorflow_datasets' own.
        download: Whether a set that is not prepared may be downloaded.

    Raises:
        ValueError: For an unknown name or a set that is not prepared; the message says what to do.
    """
    import tensorflow_datasets as tfds

    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    if data_dir is not None and not data_dir.startswith(_REMOTE):
        data_dir = str(local_path(data_dir, "data_dir"))
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ValueError as error:
        near = difflib.get_close_matches(name, [*SETS, *tfds.list_builders()], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"dataset must be one of {', '.join(SETS)} or another image classification set of "
            f"tensorflow_datasets; received dataset={name!r}{hint}."
        ) from error
    except Exception as error:  # tensorflow_datasets wraps what its file systems raise
        place = data_dir or "the default directory"
        raise ValueError(f"dataset {name!r} cannot be read from {place}: {_first_line(error)}.") from error
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
        raise ValueError(f"dataset {name!r} could not be downloaded and prepared: {_first_line(error)}.") from error
    return builder


@contextlib.contextmanager
def naming_damaged_records(name: str, place: str | os.PathLike[str] | None, reading: bool = False) -> Iterator[None]:
    """Within it TensorFlow's error of a record file that is damaged or cut short is one sentence.

    Args:
        name: The set's name.
        place: Its directory; None for the default one.
        reading: Whether nothing but the set is read within it, so that every error of TensorFlow is the set's.

    Raises:
        DamagedFile: In place of TensorFlow's error.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        yield
        return
    try:
        yield
    except tensorflow.errors.OpError as error:
        if not reading and not isinstance(error, tensorflow.errors.DataLossError):
            raise
        where = place or "the default directory"
        raise DamagedFile(
            f"dataset {name!r} cannot be read from {where} ({reason_of(error)}): prepare it again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def image_and_label(name: str, features: Any) -> tuple[str, str]:
    """Returns the names of the image and of the class label among the features of a set."""
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


def test_split(name: str, splits: Any, candidates: Sequence[str] = ("test", "validation")) -> str:
    """Returns the split to report accuracy on.

    Args:
        name: The set's name, for the message.
        splits: Its splits, by name.
        candidates: The names to look for, best first.
    """
    for split in candidates:
        if split in splits and "train" in splits:
            return split
    raise ValueError(
        f"dataset must have a train and a test or validation split; received dataset={name!r} with the "
        f"splits {', '.join(splits)}."
    )
