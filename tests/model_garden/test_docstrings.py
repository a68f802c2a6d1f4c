"""The examples in the docstrings of the Model Garden half run; those of the rest: tests/test_docs.py."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from tf_largebatch import model_garden

# The command line, which defines flags where it is imported.
MODULES = [
    m.name
    for m in pkgutil.walk_packages(model_garden.__path__, "tf_largebatch.model_garden.")
    if m.name[-6:] != ".train"
]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
