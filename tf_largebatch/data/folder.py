"""A data set in a directory: a folder for each part, in it a folder for each class, in it JPEG and PNG files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from tf_largebatch.data.memory import Arrays
from tf_largebatch.files import local_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
DEFAULT_SIZE = 224
_LAYOUT = "train/CLASS/IMAGE, optionally validation/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE"


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of one part of the set.

    Attributes:
        paths: Their files.
        labels: Their classes, integers `(n,)`.
    """

    paths: tuple[str, ...]
    labels: np.ndarray

    def at(self, numbers: np.ndarray) -> Part:
        """Returns the images with these numbers."""
        return Part(tuple(self.paths[number] for number in numbers), self.labels[numbers])


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a directory, found but not read.

    Attributes:
        class_names: Names of the folders of `train`, sorted.
        train: Images to train on.
        evaluation: Images of each other part that is there, by its name: `"validation"`, `"test"`.
        size: Height and width, if all images have the same; else None.
        channels: 1 if all images are grey, else 3.
    """

    class_names: tuple[str, ...]
    train: Part
    evaluation: dict[str, Part]
    size: tuple[int, int] | None
    channels: int


def find_images(data_dir: str) -> Folder:
    """Finds the images of a directory and reads their headers.

    Args:
        data_dir: The directory: train/CLASS/IMAGE and optionally validation/CLASS/IMAGE and test/CLASS/IMAGE, or
            CLASS/IMAGE alone.

    Raises:
        ValueError: If there are no images in fewer than two classes, a part has other classes, or a file is no image.
    """
    root = local_path(data_dir, "data_dir")
    if not root.is_dir():
        raise ValueError(f"data_dir must be a directory of images ({_LAYOUT}); received data_dir={data_dir!r}.")
    parts = root / "train"
    train = parts if parts.is_dir() else root
    class_names = tuple(sorted(path.name for path in _folders(train) if any(_images(path))))
    if len(class_names) < 2:
        raise ValueError(
            f"data_dir must hold images of two or more classes ({_LAYOUT}); received data_dir={data_dir!r} with "
            f"{len(class_names)}."
        )
    names = ("validation", "test") if train is parts else ()
    evaluation = {name: _part(root / name, class_names) for name in names if (root / name).is_dir()}
    found = _part(train, class_names)
    headers = [header for part in (found, *evaluation.values()) for header in _headers(part.paths)]
    sizes = {size for size, _ in headers}
    grey = all(mode in ("1", "L") for _, mode in headers)
    return Folder(class_names, found, evaluation, sizes.pop() if len(sizes) == 1 else None, 1 if grey else 3)


def read_images(paths: Sequence[str], size: tuple[int, int], channels: int) -> np.ndarray:
    """Reads images; those of another size are cropped in the middle to its proportions and resized.

    Args:
        paths: Their files.
        size: Height and width of the result.
        channels: 1 or 3.

    Returns:
        uint8 `(n, height, width, channels)`.

    Raises:
        ValueError: If a file cannot be read; the message names it.
    """
    found = np.empty((len(paths), *size, channels), np.uint8)

    def read(number: int) -> None:
        found[number] = read_image(paths[number], size, channels)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(len(paths))):
            pass
    return found


def read_image(path: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """Reads an image; see `read_images`. uint8 `(height, width, channels)`."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image: restore the file or remove it.") from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if pixels.shape[:2] == tuple(size):
        return pixels
    height, width = pixels.shape[:2]
    # The largest window in the middle with the proportions of the result.
    scale = min(height / size[0], width / size[1])
    inner = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    window = pixels[top : top + inner[0], left : left + inner[1]].astype(np.float32)
    smooth = inner[0] > size[0]
    resized = keras.ops.image.resize(window, size, antialias=smooth, data_format="channels_last")
    return np.clip(np.rint(keras.ops.convert_to_numpy(resized)), 0, 255).astype(np.uint8)


def read_part(part: Part, size: tuple[int, int], channels: int) -> Arrays:
    """Reads the images of a part; see `read_images`."""
    return read_images(part.paths, size, channels), part.labels


def images_in(path: str) -> list[str]:
    """Returns the image files in a directory and its subdirectories, sorted; of a file, itself."""
    root = local_path(path)
    return [str(root)] if root.is_file() else sorted(str(one) for one in root.rglob("*") if _is_image(one))


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    return [one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")]


def _part(root: pathlib.Path, class_names: Sequence[str]) -> Part:
    others = sorted(path.name for path in _folders(root) if path.name not in class_names and _images(path))
    if others:
        raise ValueError(
            f"{root} must hold images of the classes of train alone ({', '.join(class_names)}); received {others[0]!r}."
        )
    paths = [[str(path) for path in _images(root / name)] if (root / name).is_dir() else [] for name in class_names]
    labels = np.repeat(np.arange(len(class_names)), [len(one) for one in paths])
    if not len(labels):
        raise ValueError(f"{root} must hold images of the classes {', '.join(class_names)}; received none.")
    return Part(tuple(path for one in paths for path in one), labels)


def _headers(paths: Sequence[str]) -> list[tuple[tuple[int, int], str]]:
    """Returns ((height, width), PIL mode) of each image."""
    from PIL import Image

    def header(path: str) -> tuple[tuple[int, int], str]:
        try:
            with Image.open(path) as image:
                return image.size[::-1], image.mode
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an image: restore the file or remove it.") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(header, paths))
