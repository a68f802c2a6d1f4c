"""How a configuration is refused: in one sentence that names the field, its value and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from official.modeling import hyperparams

from tf_largebatch import check


class ConfigurationError(ValueError):
    """A configuration, a data set or a directory that cannot be trained with. Its text is one sentence."""


require = functools.partial(check.require, error=ConfigurationError)
"""`check.require` that raises a `ConfigurationError`."""


def refuse_unknown_fields(config: Any, given: Any, path: str = "") -> None:
    """Raises for a key of `given`, at any depth, that `config` has no field for.

    Args:
        config: The configuration to be overridden, or its class where it is null.
        given: A nested mapping or another configuration.
        path: Where `config` stands in the experiment.

    Raises:
        KeyError: If there is one. The message names the whole path of the first and the nearest known fields.
    """
    given = given.as_dict() if isinstance(given, hyperparams.ParamsDict) else given
    if not isinstance(given, Mapping):
        return
    known = _field_names(config)
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or sorted(known)
            raise KeyError(f"{path}{key} is not a field of the experiment: did you mean {either(near)}?")
        section = _section(config, key)
        if section is not None:
            refuse_unknown_fields(section, value, f"{path}{key}.")


def require_one_of(chosen: Any, config: hyperparams.OneOfConfig, field: str) -> None:
    """Raises a `ConfigurationError` unless `chosen` is one of the types of a one-of config."""
    known = sorted(key for key in vars(config) if key not in (*config.RESERVED_ATTR, "type"))
    near = difflib.get_close_matches(str(chosen), known, n=3)
    remedy = f"perhaps {either(near)} is meant" if near else ""
    require(chosen in known, field, chosen, f"one of {', '.join(known)}", remedy)


def is_integer(value: Any, least: int) -> bool:
    """Returns whether the value is an integer of `least` or more."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Returns whether the value is a finite real number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def one_line(error: BaseException) -> str:
    """Returns what an error says, on one line and without TensorFlow's account of where it arose.

    A sentence of this package inside an assertion of a graph is taken out of the account.
    """
    text = getattr(error, "message", "") or str(error)
    if isinstance(error, KeyError) and error.args:
        key = error.args[0]
        text = key if isinstance(key, str) and " " in key else f"there is no {key!r}"
    asserted = re.search(r"assertion failed: \[(.*?\.)\]", text, re.DOTALL)
    lines = [line.strip() for line in (asserted[1] if asserted else text).splitlines()]
    first = [line for line in lines if line]
    return re.sub(r"^\{\{.*?\}\} ", "", first[0]) if first else type(error).__name__


def either(names: list[str]) -> str:
    """Returns the names with "or" before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _field_names(config: Any) -> list[str]:
    if isinstance(config, type):
        return [field.name for field in dataclasses.fields(config)]
    return [key for key in vars(config) if key not in config.RESERVED_ATTR]


def _section(config: Any, key: str) -> Any:
    """Returns the section behind a field.

    It is an object, its class where the field is null, or None where it is no section.
    """
    value = None if isinstance(config, type) else getattr(config, key)
    if isinstance(value, hyperparams.ParamsDict):
        return value
    section = None if value is not None else _owner(config)._get_subconfig_type(key)
    return section if section is not hyperparams.Config else None


def _owner(config: Any) -> Any:
    return config if isinstance(config, type) else type(config)
