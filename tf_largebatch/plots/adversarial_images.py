"""Clean images, perturbations and adversarial images, side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_largebatch.check import require
from tf_largebatch.core.pgd import bounds
from tf_largebatch.plots import style


def plot_adversarial_images(
    x: Any,
    adversarial: Any,
    y: Any,
    *,
    model: keras.Model | None = None,
    value_range: Any = (0.0, 255.0),
    class_names: Sequence[str] | None = None,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draws clean images, perturbations and adversarial images: three rows, one column for each image.

    The perturbation is amplified about mid-grey by the factor that the row states: a mid-grey pixel is unchanged, and a
    black or white one has the largest change of all images. Captions say which answers are right and which are wrong.

    Args:
        x: Clean images, [n, height, width, channels] with 1 or 3 channels.
        adversarial: Their adversarial images, same shape.
        y: Their labels, integers [n] or [n, 1], or one-hot [n, classes]; None to show none.
        model: Classifier with one score for each class, whose answers are shown, called in inference mode; None to show
            none.
        value_range: `(lower, upper)` of valid images, or one such pair for each channel.
        class_names: Names of the classes; by default their numbers.
        title: Title above the picture.
        path: Where to save the picture as PNG; None not to save it.

    Returns:
        The Matplotlib figure.

    Raises:
        ValueError: Unless x and adversarial are one or more images of the same shape, and the model gives one score for
            each class.
    """
    x, adversarial = np.asarray(x, "float32"), np.asarray(adversarial, "float32")
    if x.ndim != 4 or x.shape != adversarial.shape or not len(x) or x.shape[-1] not in (1, 3):
        raise ValueError(
            "x and adversarial must be images of one shape [n, height, width, 1 or 3]; "
            f"received shapes {x.shape} and {adversarial.shape}."
        )
    labels = _labels(y)
    names = [str(i) for i in range(max(labels, default=0) + 1)] if class_names is None else class_names
    clean, attacked = _in_units_of_255(x, value_range), _in_units_of_255(adversarial, value_range)
    change = attacked - clean
    largest = float(np.abs(change).max())
    rows = {
        "clean": clean / 255,
        _perturbation_label(largest): 0.5 + change / (2 * largest or 1.0),
        "adversarial": attacked / 255,
    }
    captions = [[_name(names, label) for label in labels] or [""] * len(x), [""] * len(x), [""] * len(x)]
    if model is not None and labels:
        for row, images in ((0, x), (2, adversarial)):
            said = _answers(model, images)
            captions[row] = [_caption(names, int(s), int(t)) for s, t in zip(said, labels, strict=True)]
    return _drawn(rows, captions, title, path)


def _labels(y: Any) -> list[int]:
    """Returns the number of each image's class; empty if there are no labels."""
    if y is None:
        return []
    y = np.asarray(y)
    return [int(label) for label in (np.argmax(y, axis=-1) if y.ndim == 2 and y.shape[-1] > 1 else y.reshape(-1))]


def _answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the class with the highest score for each image."""
    scores = model(images, training=False)
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(scores)]
    fits = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1
    require(fits, "model", shapes, "a classifier with one score for each class, or None", "pass model=None")
    return np.argmax(np.asarray(scores), axis=-1)


def _drawn(rows: Mapping[str, Any], captions: list[list[str]], title: str, path: Any) -> Any:
    columns = len(next(iter(rows.values())))
    with style.settings():
        figure = style.new_figure(max(1.7 * columns + 0.6, 5.0), 7.0)
        axes = figure.subplots(3, columns, squeeze=False)
        for row, (name, images), texts in zip(axes, rows.items(), captions, strict=True):
            for axis, image, text in zip(row, images, texts, strict=True):
                image = np.clip(image, 0, 1)
                image = image.squeeze(-1) if image.shape[-1] == 1 else image
                axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(True)
                axis.set_xlabel(text)
            row[0].set_ylabel(name)
        if title:
            figure.suptitle(title)
        if path is not None:
            style.save(figure, path)
    return figure


def _in_units_of_255(images: np.ndarray, value_range: Any) -> np.ndarray:
    """Converts images to the scale on which valid ones span 0 to 255."""
    lower, upper = bounds(value_range)
    return 255 * (images - lower) / (upper - lower)


def _perturbation_label(largest: float) -> str:
    if not largest:
        return "no perturbation"
    return f"perturbation,\n{_rounded(127.5 / largest)} times (grey: 0,\nat most {_rounded(largest)} of 255)"


def _rounded(value: float) -> str:
    """Rounds a positive number to three significant digits, without trailing zeros."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _caption(names: Sequence[str], said: int, true: int) -> str:
    if said == true:
        return f"{_name(names, said)}\n(right)"
    return f"{_name(names, said)}\n(is {_name(names, true)})"
