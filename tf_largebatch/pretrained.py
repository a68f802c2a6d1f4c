"""Networks that bring their weights, from a file or of keras.applications, and take pixels as they are stored."""

from __future__ import annotations

import inspect
import os
import sys

import keras
from keras import layers

from tf_largebatch import models


def takes_pixels(name: str, weights: str | None = None) -> bool:
    """Returns whether a network takes pixels as they are stored in place of standardized images.

    Args:
        name: Name of a network, or the path of a .keras file.
        weights: Its weights; see `with_weights`.
    """
    return is_file(name) or weights is not None


def is_file(name: str) -> bool:
    """Returns whether a network's name is that of a .keras file."""
    return name.lower().endswith(".keras")


def with_weights(
    name: str, weights: str, image_shape: models.ImageShape, num_classes: int, pixel_scale: float = 255.0
) -> keras.Model:
    """Builds a network of keras.applications with weights, and a new dense layer in place of its classifier.

    It takes pixels and prepares them as the network's own `preprocess_input` does. Grey images become RGB.

    Args:
        name: Its name; see `models.build`.
        weights: `"imagenet"`, which Keras keeps in ~/.keras/models and fetches from the network otherwise, or the
            path of a .weights.h5 file of the network without its classifier (`include_top=False`).
        image_shape: `(height, width, channels)`, channels 1 or 3.
        num_classes: Number of logits.
        pixel_scale: The largest pixel value.

    Raises:
        ValueError: If the network has no such weights, they cannot be read, or the images are too small for it.
    """
    function = models.applications()[models.canonical_name(name)]
    if image_shape[2] not in (1, 3):
        raise ValueError(f"weights={weights!r} must go with grey or RGB images; received images of {image_shape}.")
    pixels = keras.Input(image_shape, name="pixels")
    x = pixels
    if pixel_scale != 255:
        x = layers.Rescaling(255 / pixel_scale, name="to_255")(x)
    if image_shape[2] == 1:
        x = layers.Concatenate(name="to_rgb")([x, x, x])
    if "include_preprocessing" not in inspect.signature(function).parameters:
        x = sys.modules[function.__module__].preprocess_input(x)
    try:
        network = function(include_top=False, weights=weights, input_shape=(*image_shape[:2], 3))
    except Exception as error:  # of the network, of HDF5 and of Keras, by what is wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"model {function.__name__} cannot be built with weights={weights!r} for images of shape {image_shape}: "
            f"{reason}. Check the file of weights, or choose another model or image_size."
        ) from error
    models.quicken_averages(network)
    return models.classifier(pixels, network(x), num_classes, f"{network.name}_pretrained")


def from_file(path: str, image_shape: models.ImageShape, num_classes: int) -> keras.Model:
    """Loads a classifier to go on training.

    Args:
        path: A .keras file.
        image_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.

    Raises:
        ValueError: If the file cannot be loaded, or holds no classifier of such images.
    """
    if not os.path.isfile(path):
        raise ValueError(f"model must be a file that exists; received model={path!r}.")
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # whatever a damaged archive or an unknown class makes Keras raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} is damaged, or no model that Keras can load: {reason}.") from error
    for given, wanted, what, remedy in (
        (model.input_shape, image_shape, "inputs", "pass image_size, or another model"),
        (model.output_shape, (num_classes,), "outputs", "choose a model with an output for each class"),
    ):
        fits = isinstance(given, tuple) and len(given) == len(wanted) + 1
        if not fits or any(one not in (None, size) for one, size in zip(given[1:], wanted, strict=True)):
            raise ValueError(
                f"model must have {what} of shape {tuple(wanted)} for this data set; received model={path!r} with "
                f"{given}: {remedy}."
            )
    return model


def returns_logits(model: keras.Model) -> bool:
    """Returns whether a classifier returns logits: unless its last layer is a softmax."""
    last = model.layers[-1]
    if isinstance(last, keras.Model):
        return returns_logits(last)
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    return not (softmax or isinstance(last, layers.Softmax))
