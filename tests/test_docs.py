"""The Python code in README files, documentation and docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import tf_largebatch
from tf_largebatch import norms

ROOT = pathlib.Path(__file__).parent.parent
FENCE = "```python\n"
PAGES = ["README.md", "tf_largebatch/norms/README.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md") if FENCE in p.read_text())


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    if any("Strategy(" in block for block in blocks):
        # TensorFlow wants one strategy in a process (see `two_replicas` in conftest.py).
        found = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return
    before = set(norms.KERAS.layer_classes())
    namespace: dict = {}
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    finally:
        for layer_class in set(norms.KERAS.layer_classes()) - before:
            norms.unregister(layer_class)


def modules():
    # What needs Model Garden or tf_keras runs in their environment: tests/model_garden/test_docstrings.py.
    package = ROOT / "tf_largebatch"
    paths = [path.relative_to(ROOT).with_suffix("").parts for path in sorted(package.rglob("*.py"))]
    found = [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths]
    elsewhere = ("tf_largebatch.model_garden", "tf_largebatch.tf_keras")
    # Importing a __main__ runs its program.
    return [name for name in found if not name.startswith(elsewhere) and not name.endswith("__main__")]


@pytest.mark.parametrize("module", modules())
def test_docstring_examples_run(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_names_are_documented():
    for name in tf_largebatch.__all__:
        thing = getattr(tf_largebatch, name)
        assert isinstance(thing, str) or (thing.__doc__ and len(thing.__doc__) > 40), name
