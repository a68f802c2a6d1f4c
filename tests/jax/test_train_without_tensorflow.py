"""JAX only: the command line where TensorFlow is not installed, which a process of its own hides."""

from __future__ import annotations

import csv
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "tf_keras"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())

from absl import flags

from tf_largebatch import train

def command_line(*arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return train.main(["train"], values)

run = ("--model=network.keras", "--batch_size=100", "--epochs=2", "--output_dir=run")
run += ("--strategy=mirrored", "--replicas=2")  # the CPU is cut into two devices
assert command_line("--dataset=set.npz", *run) == 0
assert command_line("--dataset=cifar10") == 1
assert command_line("--tensorboard") == 1
assert command_line("--strategy=mirrored", "--replicas=3") == 1
assert command_line("--strategy=mirrored", "--replicas=2", "--batch_size=99") == 1
assert command_line("--strategy=multi_worker", "--output_dir=other") == 1
"""


@pytest.mark.long
def test_clars_trains_on_arrays(tmp_path):
    import keras
    import numpy as np

    from tf_largebatch import data

    (images, labels), _ = data.load_digits()
    np.savez(tmp_path / "set.npz", images=images[:400], labels=labels[:400])
    pixels = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 16)(pixels))
    keras.Model(pixels, keras.layers.Dense(10)(x)).save(tmp_path / "network.keras")
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and float(rows[1]["loss"]) < float(rows[0]["loss"])
    for name in ("final.keras", "curves.png", "layerwise_rates.csv", "noise_scales.csv", "checkpoints/epoch-0002.npz"):
        assert (tmp_path / "run" / name).exists()
    assert "sets of tensorflow_datasets need TensorFlow" in done.stderr
    assert "tensorboard must be left out where TensorFlow is not installed" in done.stderr
    assert "strategy=mirrored needs 3 devices; received a machine with 2 of kind CPU" in done.stderr
    assert "batch_size must be a multiple of the 2 replicas; received batch_size=99" in done.stderr
    assert "strategy=multi_worker cannot connect the workers (" in done.stderr
    assert '"replicas": 2' in (tmp_path / "run" / "config.json").read_text()
