"""What tests of the command line share: calling it, networks that compile quickly, and reading what a run left."""

from __future__ import annotations

import csv

import keras
import numpy as np
from absl import flags

from tf_largebatch import models, train
from tf_largebatch.callbacks.checkpoint import list_checkpoints


def parsed_flags(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return values


def command_line(*arguments):
    return train.main(["train"], parsed_flags(*arguments))


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def untimed_rows_of(path):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows_of(path)]


def arrays_of(output_dir):
    _, path = list_checkpoints(output_dir / "checkpoints")[-1]
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def tiny_network(image_shape, num_classes):
    """Compiles quickly, with everything whose state a checkpoint must keep."""
    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(8, 3, 2, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(num_classes, dtype="float32", name="logits")(x))


def linear_network(image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(keras.layers.Flatten()(inputs)))


def add_networks(monkeypatch):
    """Makes --model=tiny and --model=linear known: a network takes one function and one row."""
    monkeypatch.setitem(models.NETWORKS, "tiny", tiny_network)
    monkeypatch.setitem(models.NETWORKS, "linear", linear_network)
