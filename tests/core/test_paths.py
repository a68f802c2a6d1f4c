"""Labels of variables."""

from __future__ import annotations

import types

from tf_largebatch.core.paths import variable_labels, variable_path


def test_the_second_tensor_of_a_path_is_numbered():
    variables = [types.SimpleNamespace(path=path) for path in ("a/kernel", "b/kernel", "a/kernel", "a/kernel")]
    assert variable_labels(variables) == ["a/kernel", "b/kernel", "a/kernel#2", "a/kernel#3"]


def test_a_variable_without_a_path_goes_by_its_name():
    assert variable_path(types.SimpleNamespace(name="kernel:0")) == "kernel"
