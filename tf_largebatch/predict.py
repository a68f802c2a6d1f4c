"""Classifies images with a saved model: python -m tf_largebatch.predict --model=RUN --images=FOLDER [flags].

It writes a CSV file with a row for each image: the file, the most probable class, its probability, and the
probabilities of all classes (or of the --top most probable ones).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

from tf_largebatch.check import require
from tf_largebatch.data import folder
from tf_largebatch.evaluate import find_model
from tf_largebatch.files import local_path, replacing
from tf_largebatch.train import command_line, final_model

DEFAULT_SIZE = 224


def predict(
    model: keras.Model,
    paths: Sequence[str],
    *,
    pixel_scale: float = 255.0,
    logits: bool = True,
    batch_size: int = 256,
) -> Iterator[tuple[str, np.ndarray]]:
    """Classifies image files.

    Args:
        model: A classifier of stored pixels, such as a run's final.keras.
        paths: The image files; images of another size are cropped in the middle and resized.
        pixel_scale: The largest pixel value that the model was trained on.
        logits: Whether the model returns logits, not probabilities.
        batch_size: Images classified at once.

    Yields:
        The file and the probabilities of the classes, `(k,)`.

    Raises:
        ValueError: If a file cannot be read; the message names it.
    """
    _, height, width, channels = model.input_shape
    size = (height or DEFAULT_SIZE, width or DEFAULT_SIZE)
    for first in range(0, len(paths), batch_size):
        batch = paths[first : first + batch_size]
        images = folder.read_images(batch, size, channels).astype(np.float32) * np.float32(pixel_scale / 255)
        output = np.asarray(model.predict_on_batch(images), np.float64)
        if logits:
            output = np.exp(output - output.max(axis=1, keepdims=True))
            output /= output.sum(axis=1, keepdims=True)
        yield from zip(batch, output, strict=True)


_GIVEN = {"model": "a .keras file or a run's directory", "images": "an image file or a directory of images"}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    flags.DEFINE_string("model", None, "A .keras file, or the directory of a run.", flag_values=values)
    flags.DEFINE_string("images", None, "An image file, or a directory of images.", flag_values=values)
    flags.DEFINE_string("output", "predictions.csv", "The CSV file to write.", flag_values=values)
    flags.DEFINE_integer("top", None, "Write only this many of the most probable classes.", flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "Images classified at once.", flag_values=values)


def _rows(predictions: Iterator[tuple[str, np.ndarray]], names: Sequence[str], top: int | None) -> Iterator[list[Any]]:
    if top is None:
        yield ["file", "class", "probability", *names]
    else:
        yield ["file", *(f"{what}_{rank + 1}" for rank in range(top) for what in ("class", "probability"))]
    for path, probabilities in predictions:
        order = np.argsort(-probabilities, kind="stable")[: top or 1]
        best = [one for number in order for one in (names[number], f"{probabilities[number]:.6g}")]
        rest = [] if top is not None else [f"{value:.6g}" for value in probabilities]
        yield [path, *best, *rest]


def _run(values: flags.FlagValues) -> None:
    given: dict[str, Any] = {name: values[name].value for name in values}
    for name in ("model", "images"):
        require(bool(given[name]), name, None, f"given: {_GIVEN[name]}")
    require(given["batch_size"] >= 1, "batch_size", given["batch_size"], "1 or more")
    path, _ = find_model(given["model"])
    images = local_path(given["images"], "images")
    require(images.exists(), "images", str(images), "a file or a directory that exists")
    paths = folder.images_in(str(images))
    require(bool(paths), "images", str(images), f"a directory with images ({', '.join(folder.SUFFIXES)})")
    output = local_path(given["output"], "output")
    model, information = final_model.load(path)
    shape, classes = model.input_shape, model.output_shape
    takes_images = isinstance(shape, tuple) and len(shape) == 4 and shape[-1] in (1, 3) and len(classes) == 2
    require(takes_images, "model", str(path), f"a classifier of grey or RGB images, and it maps {shape} to {classes}")
    known = information or final_model.Information()
    names = known.class_names or tuple(str(number) for number in range(classes[-1]))
    top = given["top"]
    require(top is None or 1 <= top <= len(names), "top", top, f"from 1 to the {len(names)} classes")
    predictions = predict(
        model,
        paths,
        pixel_scale=known.pixel_scale,
        logits=final_model.returns_logits(model, information),
        batch_size=given["batch_size"],
    )
    replaces = output.exists()
    with replacing(output) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows(_rows(predictions, names, top))
    print(f"{len(paths)} images classified: {output}{' (replaced)' if replaces else ''}")


def main(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the program; returns the exit status."""
    return command_line.reported(argv, lambda: _run(values))


if __name__ == "__main__":
    define_flags()
    app.run(main)
