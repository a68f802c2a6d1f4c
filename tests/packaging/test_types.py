"""The annotations: the package passes mypy as configured, and its callers see types (py.typed)."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

CALLER = """
import keras
import numpy as np

import tf_largebatch as lb
from tf_largebatch import callbacks, data, norms, zoo

net = keras.Sequential([keras.layers.Dense(3)])
x, y = np.zeros((4, 2)), np.zeros((4,))
reveal_type(lb.CLARS(0.1).layerwise_rates())
reveal_type(lb.LARS(0.1).adapted_tensors())
reveal_type(lb.linear_scaling(0.1, batch_size=4096, base_batch_size=128))
reveal_type(lb.large_batch_schedule(0.1, 4096, 128, steps_per_epoch=12, epochs=6).total_steps)
reveal_type(lb.LargeBatchModel(net, norm_examples=8).norm_examples)
reveal_type(norms.KERAS.layer_classes())
reveal_type(callbacks.layerwise_values(net)["dense/kernel"].rate)
reveal_type(data.load("digits").train_size)
reveal_type(zoo.names())
lb.CLARS(gradient_norms=3)
lb.linear_scaling("0.1", batch_size=4096, base_batch_size=128)
"""
REVEALED = [
    "dict[str, float]",
    "list[str]",
    "float",
    "int",
    "int | None",
    "list[type]",
    "float | None",
    "int",
    "tuple[str, ...]",
]


def mypy(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def test_the_package_passes(cache):
    found = mypy("--cache-dir", cache)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_caller_sees_types_and_mistakes(cache, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    said = mypy("--cache-dir", cache, script).stdout
    assert [shown.replace("builtins.", "") for shown in re.findall(r'Revealed type is "(.*)"', said)] == REVEALED, said
    assert len(re.findall(r"error: Argument .* has incompatible type", said)) == 2, said
