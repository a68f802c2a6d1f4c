"""Batches of a set held in memory, made in NumPy: those of `tensorflow_pipeline`, without TensorFlow."""

from __future__ import annotations

import functools

import keras
import numpy as np

from tf_largebatch.data import augmentation, philox
from tf_largebatch.data.batches import ArrayBatches
from tf_largebatch.data.standardization import Standardization

Arrays = tuple[np.ndarray, np.ndarray]


def training_batches(
    arrays: Arrays,
    batch_size: int,
    seed: int,
    first_epoch: int,
    epochs: int,
    augment: str,
    standardization: Standardization,
) -> ArrayBatches:
    """Returns the batches of the epochs, one after the other; see `Dataset.train`."""
    images, labels = arrays[0], arrays[1].astype(np.int32)
    steps = len(labels) // batch_size

    @functools.lru_cache(maxsize=2)
    def order_of(epoch: int) -> np.ndarray:
        return philox.permutation((seed, epoch), len(labels))

    def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, step = first_epoch + index // steps, index % steps
        chosen = order_of(epoch)[step * batch_size : (step + 1) * batch_size]
        found = images[chosen]
        if augment == "crop_flip":
            found = crop_and_flip(found, philox.fold_in((seed, epoch), step))
        elif augment == "random":
            key = philox.fold_in((seed, epoch), step)
            found = augmentation.randomly_changed(found, key, standardization.pixel_scale)
        return standardized(found, standardization), labels[chosen]

    return ArrayBatches(steps * (epochs - first_epoch), batch)


def evaluation_batches(arrays: Arrays, batch_size: int, standardization: Standardization) -> ArrayBatches:
    """Returns every image once, in order."""
    images, labels = arrays[0], arrays[1].astype(np.int32)

    def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(index * batch_size, (index + 1) * batch_size)
        return standardized(images[part], standardization), labels[part]

    return ArrayBatches(-(-len(labels) // batch_size), batch)


def crop_and_flip(images: np.ndarray, key: philox.Key, pad: int = 4) -> np.ndarray:
    """Pads, crops and flips a batch; see `tensorflow_pipeline.crop_and_flip`, whose images it returns."""
    batch, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = philox.integers(key, 2 * batch, 2 * pad + 1).reshape(2, batch, 1)
    flip = philox.uniform(philox.fold_in(key, 1, bits=32), batch)[:, None] < 0.5
    columns = np.arange(width)
    rows, columns = top + np.arange(height), left + np.where(flip, columns[::-1], columns)
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def standardized(images: np.ndarray, standardization: Standardization) -> np.ndarray:
    """Resizes a batch where necessary and standardizes it: float32."""
    images = images.astype(np.float32)
    if images.shape[1:3] != standardization.size:
        resized = keras.ops.image.resize(images, standardization.size, data_format="channels_last")
        images = keras.ops.convert_to_numpy(resized)
    return (images - standardization.offset) * standardization.factor
