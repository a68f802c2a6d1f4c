"""The package as a whole: what importing it needs and does."""

from __future__ import annotations

import subprocess
import sys

import tf_largebatch


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_another_keras_backend_is_refused_in_one_sentence():
    # Another backend is not installed with the package: Keras only says that it runs on one.
    found = run_python("import keras; keras.backend.backend = lambda: 'jax'; import tf_largebatch")
    assert found.returncode != 0
    assert "needs Keras on TensorFlow, and Keras runs on 'jax' here: set" in found.stderr.splitlines()[-1]


def test_importing_brings_in_neither_tf_keras_nor_model_garden():
    code = "import sys, tf_largebatch; print([m for m in ('tf_keras', 'official') if m in sys.modules])"
    assert run_python(code).stdout.strip().splitlines()[-1] == "[]"


def test_every_public_name_exists():
    assert all(hasattr(tf_largebatch, name) for name in tf_largebatch.__all__)
