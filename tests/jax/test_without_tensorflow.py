"""The package on JAX where TensorFlow, tf_keras and tensorflow-datasets are not installed."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HIDE = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("tensorflow", "tf_keras", "tensorflow_datasets", "official")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
# Every module but those of TensorFlow; then a step, and a run of the command line.
WORKS = """
import importlib, pkgutil
import keras, numpy as np
import tf_largebatch as lb
import tf_largebatch.train, tf_largebatch.study

OF_TENSORFLOW = ("backend.tensorflow", "tf_keras", "model_garden", "data.streaming", "data.tensorflow_pipeline",
                 "distribute.fit", "__main__")
for module in pkgutil.walk_packages(lb.__path__, "tf_largebatch.", onerror=lambda name: None):
    if not any(part in module.name for part in OF_TENSORFLOW):
        importlib.import_module(module.name)

model = lb.LargeBatchModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
model.compile(lb.CLARS(0.1, gradient_norms="per_example"), "mse")
model.fit(np.ones((8, 4)), np.ones((8, 3)), batch_size=8, verbose=0)
print(sorted(path.split("/")[-1] for path in model.optimizer.layerwise_rates()))

for name in ("tf_keras", "model_garden", "distribute.fit"):
    try:
        importlib.import_module(f"tf_largebatch.{name}")
    except ImportError as error:
        print(error)
"""
TRAINS = """
from tf_largebatch import train
result = train.train(train.TrainConfig.from_flags(epochs=1, output_dir=sys.argv[1], verbose=0))
print(0 < result.accuracy < 1)
"""


def run(code: str, *arguments: object, backend: str = "jax") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HIDE + code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_module_is_imported_and_clars_takes_a_step():
    found = run(WORKS)
    assert found.returncode == 0, found.stderr[-2000:]
    trained, *refused = found.stdout.splitlines()[-4:]
    assert trained == "['bias', 'kernel']"
    # What is TensorFlow's says so.
    for package, message in zip(("tf_keras", "model_garden", "distribute.fit"), refused, strict=True):
        assert message.startswith(f"tf_largebatch.{package} computes with TensorFlow, and Keras runs on jax here")
        assert ("keras.distribution" if "fit" in package else "KERAS_BACKEND") in message


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("torch", marks=pytest.mark.long)])
def test_keras_without_its_backend_names_the_extras(backend):
    if backend == "torch" and importlib.util.find_spec("torch"):
        pytest.skip("torch is installed: another sentence, which tests/test_package.py tests")
    lines = run("import tf_largebatch", backend=backend).stderr.strip().splitlines()
    said = f"ImportError: tf_largebatch needs Keras on TensorFlow or JAX, and Keras cannot import {backend} here"
    assert said in lines[-1] and "extra tensorflow or jax" in lines[-1]
    assert sum(line.startswith("Traceback") for line in lines) == 1


@pytest.mark.long
def test_the_command_line_trains_on_the_digits(tmp_path):
    found = run(TRAINS, tmp_path / "run")
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == "True"
