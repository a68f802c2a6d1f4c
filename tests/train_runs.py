"""What tests of the command line share: calling it, and reading what a run left."""

from __future__ import annotations

import csv

import numpy as np
from absl import flags

from tf_largebatch import train
from tf_largebatch.callbacks.checkpoint import list_checkpoints


def command_line(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return train.main(["train"], values)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def arrays_of(output_dir):
    _, path = list_checkpoints(output_dir / "checkpoints")[-1]
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
