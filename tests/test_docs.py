"""Nothing shown is unexecuted: the Python blocks of the README files and the docstrings' examples run."""

from __future__ import annotations

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import tf_largebatch
from tf_largebatch import norms

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ["README.md", "tf_largebatch/norms/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    before = set(norms.KERAS.layer_classes())
    namespace: dict = {}
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    finally:
        for layer_class in set(norms.KERAS.layer_classes()) - before:
            norms.unregister(layer_class)


def modules():
    for module in pkgutil.walk_packages(tf_largebatch.__path__, "tf_largebatch."):
        yield module.name


@pytest.mark.parametrize("module", modules())
def test_docstring_examples_run(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_names_are_documented():
    for name in tf_largebatch.__all__:
        thing = getattr(tf_largebatch, name)
        assert isinstance(thing, str) or (thing.__doc__ and len(thing.__doc__) > 40), name
