"""The trained network as a file: a plain Keras model of stored pixels, with the names of its classes."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile

import keras

from tf_largebatch import data, pretrained
from tf_largebatch.files import replacing

# A member of the .keras archive, which Keras ignores.
_INFORMATION = "tf_largebatch.json"


@dataclasses.dataclass(frozen=True)
class Information:
    """What a saved model says about itself.

    Attributes:
        class_names: Names of the classes, or None.
        pixel_scale: The largest pixel value; 255 for all sets but the digits, whose pixels end at 16.
        logits: Whether the model returns logits, not probabilities.
    """

    class_names: tuple[str, ...] | None = None
    pixel_scale: float = 255.0
    logits: bool = True


def returns_logits(model: keras.Model, information: Information | None = None) -> bool:
    """Returns whether a classifier returns logits: as its file says, else unless its last layer is a softmax.

    Args:
        model: The classifier.
        information: What its file says, if anything.
    """
    return pretrained.returns_logits(model) if information is None else information.logits


def of_pixels(inner: keras.Model, dataset: data.Dataset) -> keras.Model:
    """Returns a network that takes stored pixels, 0 to `pixel_scale`, in place of standardized images.

    It has no optimizer, whose class a program that only imports keras does not know.

    Args:
        inner: The network of standardized images.
        dataset: The data that it was trained on.
    """
    bare = keras.Model(inner.input, inner.output, name=inner.name)
    if not dataset.is_standardized:
        return bare
    scale = [1 / (s * dataset.pixel_scale) for s in dataset.std]
    offset = [-m / s for m, s in zip(dataset.mean, dataset.std, strict=True)]
    pixels = keras.Input(dataset.image_shape, name="pixels")
    images = keras.layers.Rescaling(scale, offset, dtype="float32", name="standardization")(pixels)
    return keras.Model(pixels, bare(images), name=f"{inner.name}_of_pixels")


def save(path: str | os.PathLike[str], inner: keras.Model, dataset: data.Dataset, logits: bool = True) -> None:
    """Saves a trained network so that it takes stored pixels, with the names of its classes in the archive.

    Args:
        path: The .keras file; it appears whole or not at all.
        inner: The network of standardized images.
        dataset: The data that it was trained on.
        logits: Whether the network returns logits.
    """
    information = dataclasses.asdict(Information(dataset.class_names, dataset.pixel_scale, logits))
    with replacing(path) as temporary:
        of_pixels(inner, dataset).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_INFORMATION, json.dumps(information))


def load(path: str | os.PathLike[str]) -> tuple[keras.Model, Information | None]:
    """Loads a .keras file, with what it says about itself; None for a model that was saved by another program.

    Raises:
        ValueError: If the file is missing or cannot be loaded.
    """
    if not os.path.isfile(path):
        raise ValueError(f"model must be a file that exists; received model={os.fspath(path)!r}.")
    try:
        model = keras.models.load_model(path, compile=False)
        with zipfile.ZipFile(path) as archive:
            known = _INFORMATION in archive.namelist()
            found = json.loads(archive.read(_INFORMATION)) if known else None
    except Exception as error:  # whatever a damaged archive or an unknown class makes Keras raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{os.fspath(path)} is damaged, or no model that Keras can load ({reason}): restore the file or remove it."
        ) from error
    if found is None:
        return model, None
    names = found["class_names"]
    return model, Information(None if names is None else tuple(names), found["pixel_scale"], found["logits"])
