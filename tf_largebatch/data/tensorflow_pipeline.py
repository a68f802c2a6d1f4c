"""Batches of a set held in memory, made by tf.data: several threads gather, augment and standardize ahead."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

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
) -> tf.data.Dataset:
    """Returns the batches of the epochs, one after the other; see `Dataset.train`."""
    images, labels = tf.constant(arrays[0]), tf.constant(arrays[1].astype(np.int32))
    size = len(arrays[1])
    steps = size // batch_size

    def indices_of(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.range(size), key, alg="philox")
        order = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        step = tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((tf.fill([steps], epoch), step, order))

    def batch_of(epoch: tf.Tensor, step: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = tf.gather(images, index)
        if augment == "crop_flip":
            key = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), epoch]), step, alg="philox")
            chosen = crop_and_flip(chosen, key)
        return standardized(chosen, standardization), tf.gather(labels, index)

    # The epochs are chained before the map, so batches of the next epoch are prepared during evaluation.
    indices = tf.data.Dataset.range(first_epoch, epochs).flat_map(indices_of)
    return indices.map(batch_of, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(arrays: Arrays, batch_size: int, standardization: Standardization) -> tf.data.Dataset:
    """Returns every image once, in order."""
    images, labels = tf.constant(arrays[0]), tf.constant(arrays[1].astype(np.int32))

    def take(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return standardized(tf.gather(images, index), standardization), tf.gather(labels, index)

    batches = tf.data.Dataset.range(len(arrays[1])).batch(batch_size)
    return batches.map(take, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def crop_and_flip(images: tf.Tensor, key: tf.Tensor, pad: int = 4) -> tf.Tensor:
    """Pads every image of a batch with `pad` black pixels, crops it at random, and flips it with probability 1/2.

    Args:
        images: uint8 `(batch, height, width, channels)`.
        key: Stateless seed, int64 `(2,)`.
        pad: Pixels added on each side.

    Returns:
        uint8, of the shape of `images`. All `(2 * pad + 1) ** 2` positions are equally likely.
    """
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    offset = tf.random.stateless_uniform([2, batch, 1], key, maxval=2 * pad + 1, dtype=tf.int32, alg="philox")
    flip = tf.random.stateless_uniform([batch, 1], tf.random.fold_in(key, 1, alg="philox"), alg="philox") < 0.5
    columns = tf.range(width)
    # One gather moves rows, one moves and mirrors columns: no loop over the images.
    rows = offset[0] + tf.range(height)
    columns = offset[1] + tf.where(flip, columns[::-1], columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def standardized(images: tf.Tensor, standardization: Standardization) -> tf.Tensor:
    """Resizes images where necessary and standardizes them: float32."""
    images = tf.cast(images, tf.float32)
    if tuple(images.shape[-3:-1]) != standardization.size:
        images = tf.image.resize(images, standardization.size)
    return (images - standardization.offset) * standardization.factor
