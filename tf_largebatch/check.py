"""The one way to refuse an argument: its name, the rule that it breaks, the value received, and the remedy."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable
from typing import Any

import numpy as np


def message(name: str, rule: str, value: Any, remedy: str = "") -> str:
    """Returns the sentence of a refusal.

    Args:
        name: Name of the argument, flag or field, as the user writes it.
        rule: What it must be, to follow "must be".
        value: What was received.
        remedy: What to do instead, to follow a colon; "" where the rule says it.

    Returns:
        `"NAME must be RULE; received NAME=VALUE: REMEDY."`
    """
    return f"{name} must be {rule}; received {name}={value!r}{': ' if remedy else ''}{remedy}."


def require(
    condition: bool, name: str, value: Any, rule: str, remedy: str = "", error: type[ValueError] = ValueError
) -> None:
    """Raises `error` with `message(name, rule, value, remedy)` unless the condition holds."""
    if not condition:
        raise error(message(name, rule, value, remedy))


def within_classes(what: str, labels: np.ndarray, num_classes: int) -> None:
    """Checks that labels name classes, `0 <= label < num_classes`.

    Args:
        what: What the labels are, for the message.
        labels: Numbers of any shape.
        num_classes: Number of classes.

    Raises:
        ValueError: Naming the first label that does not, and its position in the flattened array.
    """
    labels = np.ravel(labels)
    wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes)))
    if wrong.size:
        raise ValueError(
            f"{what} must lie in the {num_classes} classes 0 to {num_classes - 1}; "
            f"received {labels[wrong[0]]} at position {wrong[0]}."
        )


def plain(value: Any) -> Any:
    """Returns NumPy's scalars and arrays without axes as numbers of Python, which JSON holds; other values as given."""
    scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return value.item() if scalar else value


def number(name: str, value: Any, within: Callable[[float], bool], rule: str, remedy: str = "") -> float:
    """Returns a real number, NumPy's included, as a float.

    Args:
        name: Name of the argument.
        value: What was received.
        within: Whether a number is in the argument's range; NaN must not be.
        rule: The range in words, to follow "must be".
        remedy: As in `message`.

    Raises:
        ValueError: If the value is not a number, a truth value, or outside the range.
    """
    found = plain(value)
    is_number = isinstance(found, numbers.Real) and not isinstance(found, bool)
    require(is_number and within(float(found)), name, found, rule, remedy)
    return float(found)


def flag(name: str, value: Any) -> bool:
    """Returns a truth value, NumPy's, 0 and 1 included, as a bool.

    Raises:
        ValueError: If the value is anything else: the text "False", for one, would count as true.
    """
    found = plain(value)
    require(isinstance(found, bool | int) and found in (False, True), name, found, "True or False")
    return bool(found)


def reason_of(error: BaseException) -> str:
    """Returns the message of an error of the operating system, TensorFlow or JAX on one line, without a full stop.

    TensorFlow puts the calls that made an operation before the message, and the operations after it; they are left out.
    """
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error) or type(error).__name__
    lines = text.strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Graph execution error"):
        operations = next((i for i, line in enumerate(lines) if line.lstrip().startswith("[[")), len(lines))
        found = [line for line in lines[1:operations] if line.strip() and not line.startswith("  File ")]
        lines = found[-1:] or lines
    line = re.sub(r"^\{\{[^}]*\}\}|\[Op:.*$", "", lines[0].strip())
    return line.strip().rstrip(".")
