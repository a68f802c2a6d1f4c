"""A few generated images in the format of Model Garden's ImageNet TFRecords."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def write_records(path, examples=8, classes=10, size=40, seed=0):
    """Writes JPEG images of `size` x `size` noise around a brightness that tells the class."""
    rng = np.random.default_rng(seed)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i in range(examples):
            label = i % classes
            image = np.clip(rng.normal(255 * (label + 0.5) / classes, 40, (size, size, 3)), 0, 255).astype("uint8")
            feature = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[tf.io.encode_jpeg(image, quality=100).numpy()])
                ),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return str(path)
