"""What variables are called: in patterns, records and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def variable_path(variable: Any) -> str:
    """Returns the path of a Keras variable, or the name without its `":0"` of a variable that has no path."""
    return getattr(variable, "path", None) or variable.name.split(":")[0]


def variable_labels(variables: Sequence[Any]) -> list[str]:
    """Returns a label for each variable, all different: its path, and `"path#2"` for the second of that path.

    Two layers may share a name, for example in two towers that one function built, and then their variables share
    their paths.

    Args:
        variables: The variables, in the model's order.
    """
    labels: list[str] = []
    counts: dict[str, int] = {}
    for variable in variables:
        path = variable_path(variable)
        counts[path] = counts.get(path, 0) + 1
        labels.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
    return labels
