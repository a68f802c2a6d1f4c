"""Tests of JAX alone are collected with KERAS_BACKEND=jax only.

JAX only: it tests what JAX alone has, and compares JAX with TensorFlow.
"""

from __future__ import annotations

import keras

collect_ignore_glob = [] if keras.backend.backend() == "jax" else ["test_*.py"]
