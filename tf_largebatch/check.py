"""One way to refuse an argument: its name, the rule it breaks, the value received, and the remedy."""

from __future__ import annotations

from typing import Any


def message(name: str, rule: str, value: Any, remedy: str = "") -> str:
    """The sentence of a refusal.

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
