"""The examples in the docstrings of the rooms of tf_keras and Model Garden run; tests/test_docs.py has the others."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from tf_largebatch import model_garden, tf_keras

# The command line, which defines flags where it is imported.
MODULES = [
    found.name
    for package in (model_garden, tf_keras)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.endswith(".train")
]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
