"""Tests of the Model Garden half: skipped, with the reason printed, where the extra `garden` is not installed."""

from __future__ import annotations

import importlib.util

import pytest

MISSING = [name for name in ("tf_keras", "official") if importlib.util.find_spec(name) is None]
# What is said where Model Garden is missing is tested everywhere.
RUN_ANYWHERE = ("test_without_model_garden.py",)


class _Skipped(pytest.Module):
    """A test module that is not even imported."""

    def collect(self):
        pytest.skip(
            f"{' and '.join(MISSING)} not installed: pip install '.[garden]' in an environment of its own",
            allow_module_level=True,
        )


def pytest_pycollect_makemodule(module_path, parent):
    if MISSING and module_path.name not in RUN_ANYWHERE:
        return _Skipped.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _fresh_tf_keras():
    if MISSING:
        yield
        return
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("float32")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")
