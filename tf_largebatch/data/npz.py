"""A data set in a NumPy file: images and labels, and perhaps those of a test part."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data.memory import Arrays
from tf_largebatch.files import local_path

# Names of the arrays: images and labels to train on, and to test on.
_TRAINING = (("images", "labels"), ("x_train", "y_train"))
_TEST = (("test_images", "test_labels"), ("x_test", "y_test"))


def is_npz(name: str) -> bool:
    """Returns whether a data set's name is that of a NumPy file."""
    return name.lower().endswith(".npz")


def load_npz(name: str) -> tuple[Arrays, Arrays | None, tuple[str, ...] | None]:
    """Reads a NumPy file.

    Args:
        name: Its path. It holds `images`, uint8 `(n, height, width)` or `(n, height, width, channels)`, and `labels`,
            integers `(n,)` or `(n, 1)`; optionally `test_images`, `test_labels` and `class_names`. Keras's own names
            `x_train`, `y_train`, `x_test`, `y_test` do as well.

    Returns:
        Images and labels to train on, those to test on or None, and the names of the classes or None.

    Raises:
        ValueError: If the file cannot be read or lacks an array.
    """
    path = local_path(name, "dataset")
    if not path.is_file():
        raise ValueError(f"dataset must be a file that exists; received dataset={name!r}.")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged, or no .npz file that np.savez writes: restore it or save it again."
        ) from error
    train, test = _part(arrays, _TRAINING), _part(arrays, _TEST)
    if train is None:
        raise ValueError(
            f"dataset must hold the arrays images and labels; received dataset={name!r} with "
            f"{', '.join(arrays) or 'no arrays'}."
        )
    names = arrays.get("class_names")
    return train, test, None if names is None else tuple(str(one) for one in names)


def _part(arrays: dict[str, np.ndarray], candidates: tuple[tuple[str, str], ...]) -> Arrays | None:
    for images, labels in candidates:
        if images in arrays and labels in arrays:
            x, y = arrays[images], arrays[labels]
            alike = x.ndim and y.ndim and len(x) == len(y)
            require(bool(alike), labels, y.shape, f"one label for each of {images}, which has shape {x.shape}")
            return x[..., None] if x.ndim == 3 else x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    return None
