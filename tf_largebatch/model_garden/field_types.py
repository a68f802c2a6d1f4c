"""Whether every field of a configuration holds a value of the type that its class declares.

Model Garden checks no types: `trainer.train_steps: 2.5` trains forever, and text where a number belongs fails
somewhere inside TensorFlow.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any

from official.modeling import hyperparams

from tf_largebatch.model_garden.refusals import is_integer, is_number, require

_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_MANY = {int: "integers", float: "finite numbers", bool: "booleans", str: "texts"}


def check_types(config: hyperparams.Config, path: str = "") -> None:
    """Raises for a field, at any depth, whose value is not of the type that is declared for it.

    Args:
        config: A configuration.
        path: Where it stands in the experiment.

    Raises:
        ConfigurationError: If there is one. The message names the field, the type and the value.
    """
    declared = typing.get_type_hints(type(config))
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in vars(config).items():
        if name in config.RESERVED_ATTR or name not in declared:
            continue
        field = f"{path}{name}"
        # Some of Model Garden's own defaults are not of the declared type.
        fits = _fits(value, declared[name]) or (value == defaults.get(name) and type(value) is type(defaults[name]))
        if not fits:
            shown = value.as_dict() if isinstance(value, hyperparams.ParamsDict) else value
            require(False, field, shown, _described(declared[name]))
        if isinstance(value, hyperparams.Config):
            check_types(value, f"{field}.")


def _fits(value: Any, declared: Any) -> bool:
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if _is_sequence(declared):
        elements = set(arguments) - {Ellipsis} or {Any}
        return isinstance(value, list | tuple) and all(any(_fits(v, e) for e in elements) for v in value)
    if declared is int:
        return is_integer(value, -(2**63))
    if declared is float:
        return is_number(value)
    if declared in (bool, str, type(None)):
        return isinstance(value, declared)
    if isinstance(declared, type) and issubclass(declared, hyperparams.ParamsDict):
        return isinstance(value, hyperparams.ParamsDict)
    return True


def _described(declared: Any) -> str:
    arguments = typing.get_args(declared)
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(argument) for argument in arguments))
    if _is_sequence(declared):
        return f"a list of {_MANY.get(arguments[0], 'values')}" if arguments else "a list"
    return _NAMES.get(declared, "a section with fields of its own")


def _is_sequence(declared: Any) -> bool:
    origin = typing.get_origin(declared) or declared
    return origin in (list, tuple, collections.abc.Sequence)
