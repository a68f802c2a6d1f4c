"""The data of a study: images and labels as arrays, split into training, validation and test."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import pathlib
import struct
from collections.abc import Callable

import numpy as np

from tf_largebatch.check import require
from tf_largebatch.data import tensorflow_is_installed

AUGMENTATIONS = ("none", "crop_flip")
# crop_flip pads this many pixels on each side, as in the large-batch papers.
CROP_MARGIN = 4
# Which training images are held out does not depend on a study's seeds.
_SPLIT_SEED = 42

Labelled = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set of a study; images are standardized float32 [n, height, width, channels], labels int32 [n].

    Attributes:
        training: Images and labels to train on.
        validation: Images and labels to choose hyper-parameters on.
        test: Images and labels for the final runs alone.
        num_classes: Number of classes.
        value_range: Lowest and highest value of each channel, of pixels that are black and white.
    """

    training: Labelled
    validation: Labelled
    test: Labelled
    num_classes: int
    value_range: tuple[tuple[float, float], ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.training[0].shape[1:]


@functools.lru_cache(maxsize=1)
def load(dataset: str, data_dir: str | None, validation_examples: int, image_size: int | None = None) -> Data:
    """Loads a data set and splits it.

    Pixels are standardized with the mean and standard deviation of each channel over the training images.

    Args:
        dataset: A row of `DATASETS`, or the path of an .npz file with `x_train`, `y_train`, `x_test`, `y_test`.
        data_dir: Directory of the data set's files.
        validation_examples: How many training images to hold out: the same ones for every study.
        image_size: Height and width to average images down to; None to keep theirs.

    Raises:
        ValueError: In one sentence that names the argument and its value.
    """
    if dataset in DATASETS:
        training, test = DATASETS[dataset](data_dir)
    else:
        require(
            dataset.endswith(".npz"), "dataset", dataset, f"one of {', '.join(DATASETS)}, or the path of an .npz file"
        )
        training, test = _npz(dataset)
    if image_size is not None:
        training, test = ((_averaged(x, image_size), y) for x, y in (training, test))
    x, y = training
    lowest, highest = PIXEL_RANGES.get(dataset) or (float(x.min()), float(x.max()))
    pixel_range = [np.full(x.shape[-1], value, np.float32) for value in (lowest, highest)]
    require(
        validation_examples < len(y) // 2,
        "validation_examples",
        validation_examples,
        f"below half of the {len(y)} training images",
    )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    held_out, kept = order[:validation_examples], order[validation_examples:]
    images = x[kept]
    mean = images.mean((0, 1, 2), dtype=np.float64)
    std = np.sqrt(np.square(images - mean.astype(np.float32)).mean((0, 1, 2), dtype=np.float64))
    labels = y.astype(np.int32)

    mean, std = mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)

    def scaled(images: np.ndarray) -> np.ndarray:
        result: np.ndarray = (images - mean) / std
        return result

    return Data(
        (scaled(images), labels[kept]),
        (scaled(x[held_out]), labels[held_out]),
        (scaled(test[0]), test[1].astype(np.int32)),
        int(labels.max()) + 1,
        tuple((float(low), float(high)) for low, high in zip(*map(scaled, pixel_range), strict=True)),
    )


def draw_crops(count: int, random: np.random.Generator) -> np.ndarray:
    """Draws what `crop_and_flip` does to each image: int8 [count, 3], top and left of the crop, and 1 to flip it."""
    corners = random.integers(0, 2 * CROP_MARGIN + 1, (2, count))
    return np.stack([*corners, random.random(count) < 0.5], 1).astype(np.int8)


def crop_and_flip(images: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Images padded by `CROP_MARGIN` zeros, cropped to their own size, and flipped left to right, as `crops` says.

    Args:
        images: [n, height, width, channels].
        crops: Integers [n, 3], see `draw_crops`.
    """
    n, height, width, _ = images.shape
    margin = ((0, 0), (CROP_MARGIN, CROP_MARGIN), (CROP_MARGIN, CROP_MARGIN), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(images, margin), (height, width), axis=(1, 2))
    top, left, flip = crops.T
    cropped = windows[np.arange(n), top, left].transpose(0, 2, 3, 1)
    return np.where(flip[:, None, None, None] == 1, cropped[:, :, ::-1], cropped)


def _averaged(images: np.ndarray, size: int) -> np.ndarray:
    n, height, width, channels = images.shape
    require(
        height % size == 0 and width % size == 0,
        "image_size",
        size,
        f"a divisor of the images' {height} x {width} pixels",
    )
    blocks = images.reshape(n, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4), dtype=np.float32)


def _digits(data_dir: str | None) -> tuple[Labelled, Labelled]:
    from sklearn.datasets import load_digits

    require(data_dir is None, "data_dir", data_dir, "left out for digits, which scikit-learn ships")
    digits = load_digits()
    images, labels = digits.images[..., None].astype(np.float32), digits.target
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    test, rest = order[:360], order[360:]
    return (images[rest], labels[rest]), (images[test], labels[test])


def _fashion_mnist(data_dir: str | None) -> tuple[Labelled, Labelled]:
    require(data_dir is not None, "data_dir", data_dir, "the directory of Fashion-MNIST's four idx files (.gz)")
    directory = pathlib.Path(str(data_dir)).expanduser()
    if (directory / "fashion_mnist.npz").exists():
        return _npz(str(directory / "fashion_mnist.npz"))
    parts = []
    for prefix in ("train", "t10k"):
        images = _idx(directory / f"{prefix}-images-idx3-ubyte.gz")
        parts.append((images[..., None].astype(np.float32), _idx(directory / f"{prefix}-labels-idx1-ubyte.gz")))
    return parts[0], parts[1]


def _idx(path: pathlib.Path) -> np.ndarray:
    """Returns an array of bytes in the idx format: two zeros, the type, the rank, the sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"data_dir must hold the file {path.name}, whole; {path} cannot be read: {error}.") from error
    rank = content[3]
    sizes = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def _cifar10(data_dir: str | None) -> tuple[Labelled, Labelled]:
    arrays = pathlib.Path(data_dir or "").expanduser() / "cifar10.npz"
    if arrays.exists():
        return _npz(str(arrays))
    rule = "a directory with cifar10.npz or with the prepared cifar10 of tensorflow_datasets"
    require(
        tensorflow_is_installed(), "data_dir", data_dir, rule, "to read the latter, pip install tensorflow-datasets"
    )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder("cifar10", data_dir=data_dir or os.environ.get("TFDS_DATA_DIR"))
        is_prepared = builder.is_prepared()
    except Exception:  # tensorflow_datasets wraps what its file systems raise
        is_prepared = False
    require(is_prepared, "data_dir", data_dir, rule, "make one by running tfds build cifar10")
    train, test = (tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in ("train", "test"))
    return tuple((part["image"].astype(np.float32), part["label"]) for part in (train, test))  # type: ignore[return-value]


def _npz(path: str) -> tuple[Labelled, Labelled]:
    try:
        with np.load(pathlib.Path(path).expanduser(), allow_pickle=False) as content:
            arrays = {key: content[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            "dataset must be an .npz file with x_train, y_train, x_test and y_test; received "
            f"dataset={path!r}: {error}."
        ) from error
    images = {key: value.astype(np.float32) for key, value in arrays.items() if key.startswith("x")}
    images = {key: value[..., None] if value.ndim == 3 else value for key, value in images.items()}
    parts = []
    for part in ("train", "test"):
        x, y = images[f"x_{part}"], arrays[f"y_{part}"]
        y = y[:, 0] if y.shape[1:] == (1,) else y
        whole = x.ndim == 4 and y.shape == x.shape[:1] and len(y) > 0 and np.issubdtype(y.dtype, np.integer)
        require(
            whole and int(y.min()) >= 0,
            f"x_{part} and y_{part}",
            f"{x.shape} and {y.dtype} {y.shape}",
            f"images [n, height, width, channels] and integer labels [n] from 0 on in {path}",
        )
        parts.append((x, y))
    return parts[0], parts[1]


# Of other data sets the range is that of the training images.
PIXEL_RANGES = {"digits": (0.0, 16.0), "fashion_mnist": (0.0, 255.0), "cifar10": (0.0, 255.0)}
DATASETS: dict[str, Callable[[str | None], tuple[Labelled, Labelled]]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
