"""Which methods a layer's `call` reaches, and which of them a subclass overrides.

A rule computes what a layer class computes. A subclass that overrides a method on the way computes something else, and
would be measured wrongly. The methods are found in the code of `call`, so that no list of them can go stale.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any


@functools.cache
def reached_methods(layer_class: type) -> tuple[str, ...]:
    """Returns the methods and properties of a layer class that its `call` uses, directly or not, `call` first.

    What keras.layers.Layer itself defines is left out.
    """
    found, todo = ["call"], ["call"]
    while todo:
        for name in _names_used_by(layer_class, todo.pop()):
            if name not in found and _is_own_method(layer_class, name):
                found.append(name)
                todo.append(name)
    return tuple(found)


def overridden_method(layer_class: type, base: type, methods: tuple[str, ...]) -> str | None:
    """Returns the first of these methods of the base that a subclass overrides; None if it overrides none."""
    for name in methods:
        if inspect.getattr_static(layer_class, name, None) is not inspect.getattr_static(base, name, None):
            return name
    return None


def _classes_below_layer(layer_class: type) -> Iterator[type]:
    """Returns the classes of the method resolution order up to `Layer`, of Keras 3 or of tf_keras."""
    for cls in layer_class.__mro__:
        if cls.__name__ == "Layer":
            return
        yield cls


def _is_own_method(layer_class: type, name: str) -> bool:
    definitions = [vars(cls)[name] for cls in _classes_below_layer(layer_class) if name in vars(cls)]
    return any(list(_code(definition)) for definition in definitions)


def _names_used_by(layer_class: type, method: str) -> set[str]:
    """Returns the names in the code of a method, as the class and the classes above it define it."""
    names: set[str] = set()
    for cls in _classes_below_layer(layer_class):
        todo = list(_code(vars(cls).get(method)))
        while todo:
            code = todo.pop()
            names.update(code.co_names)
            todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names


def _code(definition: Any) -> Iterator[CodeType]:
    """Returns the code of a function, method or property."""
    if isinstance(definition, property):
        functions = [f for f in (definition.fget,) if f is not None]
    elif isinstance(definition, staticmethod | classmethod):
        functions = [definition.__func__]
    else:
        functions = [definition]
    for function in functions:
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if code is not None:
            yield code
