"""Contractions as functions of arrays: what they hold is taken out, carried through a transformation and put back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax


def pack(value: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """Returns the arrays in nested dataclasses, tuples, lists and dictionaries, and a function that puts others in."""
    arrays: list[jax.Array] = []

    def take(value: Any) -> Any:
        if isinstance(value, jax.Array):
            arrays.append(value)
            return _Place(len(arrays) - 1)
        return _mapped(take, value)

    skeleton = take(value)

    def rebuild(others: list[jax.Array]) -> Any:
        def put(value: Any) -> Any:
            return others[value.number] if isinstance(value, _Place) else _mapped(put, value)

        return put(skeleton)

    return arrays, rebuild


@dataclasses.dataclass(frozen=True)
class _Place:
    number: int


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, _Place)):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(result, field.name, function(getattr(value, field.name)))
        return result
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(function(v) for v in value)
    if isinstance(value, dict):
        return {key: function(v) for key, v in value.items()}
    return value
