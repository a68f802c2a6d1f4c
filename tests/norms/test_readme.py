"""The rules shown in norms/README.md are right, not only runnable."""

from __future__ import annotations

import pathlib
import re

import keras
import numpy as np
import pytest
from comparing import assert_agrees_with_the_reference, randomize
from keras import layers as L

from tf_largebatch import norms

README = pathlib.Path(norms.__file__).parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def shown():
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    yield namespace
    for name in ("Scale", "Projection"):
        norms.unregister(namespace[name])


@pytest.mark.parametrize("name", ["Scale", "Projection"])
def test_the_rule_agrees_with_the_reference(name, shown):
    model = keras.Sequential([keras.Input((4, 4, 3)), shown[name](), L.Flatten(), L.Dense(3)])
    randomize(model)
    rng = np.random.default_rng(0)
    assert_agrees_with_the_reference(model, rng.normal(size=(5, 4, 4, 3)).astype("float32"), rng.integers(0, 3, 5))


def test_a_rule_takes_five_lines():
    (rule,) = re.findall(r"@norms.register\(Scale\)\n(.*?)\n*$", BLOCKS[0], re.DOTALL)
    assert 1 + len(rule.splitlines()) <= 5
