"""What the tests of tf_keras and of Model Garden share: the packages that are missing, and a module that is skipped."""

from __future__ import annotations

import importlib.util
import pathlib
import runpy

import pytest


def missing(*names):
    """Those of the packages that are not installed. The directory tests/tf_keras is no package and has no origin."""
    specs = {name: importlib.util.find_spec(name) for name in names}
    return [name for name, spec in specs.items() if spec is None or spec.origin is None]


def import_hidden(package, *names):
    """The message of the ImportError that a package's own file raises where these packages are missing."""
    find_spec = importlib.util.find_spec
    path = pathlib.Path(__file__).parents[1].joinpath(*package.split("."), "__init__.py")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ImportError) as error:
        patch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else find_spec(name, *rest)
        )
        runpy.run_path(str(path))
    return str(error.value)


def module_or_skip(packages, run_anywhere, module_path, parent):
    """A collector that skips a test module, with the reason printed, where packages are missing; else None."""
    if not packages or module_path.name in run_anywhere:
        return None

    class Skipped(pytest.Module):
        def collect(self):
            reason = "pip install '.[garden]' in an environment of its own"
            pytest.skip(f"{' and '.join(packages)} not installed: {reason}", allow_module_level=True)

    return Skipped.from_parent(parent, path=module_path)


def with_float32_policy(packages):
    """A generator for a fixture: tf_keras's policy is float32 before a test and after it."""
    if packages:
        yield
        return
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("float32")
    yield
    tf_keras.mixed_precision.set_global_policy("float32")
