"""Random augmentation by Keras's layers, the same for the same key.

The layers draw from generators with a state, which is set from the key before each batch: a run that is resumed sees
what the undisturbed run would have seen.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import keras
import numpy as np

from tf_largebatch.data import philox
from tf_largebatch.data.batches import ArrayBatches

# Added to the seed of the order, so that mixup draws numbers of its own.
_MIXUP_STREAM = 1 << 40


@functools.cache
def random_layers() -> tuple[Any, ...]:
    """Returns the layers of augment="random": each draws for every image by itself, and fills with black.

    Horizontal flips; shifts by up to 10 %; rotations by up to 18 degrees; zooms by up to 10 %; contrast by up to 20 %.
    """
    layers = keras.layers
    fill: dict[str, Any] = {"fill_mode": "constant", "fill_value": 0.0, "seed": 0, "data_format": "channels_last"}
    return (
        layers.RandomFlip("horizontal", seed=0, data_format="channels_last"),
        layers.RandomTranslation(0.1, 0.1, **fill),
        layers.RandomRotation(0.05, **fill),
        layers.RandomZoom(0.1, **fill),
        layers.RandomContrast(0.2, value_range=(0, 255), seed=0),
    )


def randomly_changed(images: np.ndarray, key: philox.Key, pixel_scale: float) -> np.ndarray:
    """Returns images changed by `random_layers`, float32 of the same shape.

    Args:
        images: Pixels as they are stored, `(batch, height, width, channels)`.
        key: Determines the changes.
        pixel_scale: The largest pixel value.
    """
    changed = images.astype(np.float32) * np.float32(255 / pixel_scale)
    for number, layer in enumerate(random_layers()):
        _seed(layer, philox.fold_in(key, 2 + number))
        changed = layer(changed, training=True)
    return keras.ops.convert_to_numpy(changed) * np.float32(pixel_scale / 255)


def mixed(batches: ArrayBatches, alpha: float, num_classes: int, seed: int, first: int) -> ArrayBatches:
    """Returns batches with pairs of images and their labels mixed, labels float32 `(batch, num_classes)`.

    Args:
        batches: Images and integer labels.
        alpha: The weights are drawn from Beta(alpha, alpha).
        num_classes: Number of classes.
        seed: Seed of the run.
        first: Number of the first batch in the run.
    """
    layer = keras.layers.MixUp(alpha=alpha, seed=0)
    identity = np.eye(num_classes, dtype=np.float32)

    def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = batches[index]
        _seed(layer, philox.fold_in((seed, _MIXUP_STREAM), first + index))
        with warnings.catch_warnings():
            # The layer asks for int64, which JAX does not have.
            warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")
            found = layer({"images": images, "labels": identity[labels]}, training=True)
        return keras.ops.convert_to_numpy(found["images"]), keras.ops.convert_to_numpy(found["labels"])

    return ArrayBatches(len(batches), batch)


def _seed(layer: Any, key: philox.Key) -> None:
    """Sets the state of a layer's generator."""
    layer.generator.state.assign([number % (1 << 31) for number in key])
