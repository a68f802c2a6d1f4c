"""Tests of tf_keras, which need no Model Garden: skipped where the extra `garden` is not installed.

TensorFlow only: tf_keras has no other backend.
"""

from __future__ import annotations

import pytest
from tf_keras_environment import missing, module_or_skip, with_float32_policy

MISSING = missing("tf_keras")
# What is said where the package is missing is tested everywhere.
RUN_ANYWHERE = ("test_without_tf_keras.py",)


def pytest_pycollect_makemodule(module_path, parent):
    return module_or_skip(MISSING, RUN_ANYWHERE, module_path, parent)


@pytest.fixture(autouse=True)
def _fresh_tf_keras():
    yield from with_float32_policy(MISSING)
