"""How a configuration is refused: in one sentence that names the field, its value and the remedy."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping
from typing import Any

from official.modeling import hyperparams


class ConfigurationError(ValueError):
    """A configuration that cannot be trained with, said in one sentence."""


def refuse_unknown_fields(config: hyperparams.Config, given: Any, path: str = "") -> None:
    """Raises for a key of `given`, at any depth, that `config` has no field for.

    Args:
        config: the configuration to be overridden.
        given: a nested mapping or another configuration.
        path: where `config` stands in the experiment.

    Raises:
        KeyError: naming the whole path of the first unknown field and the nearest known ones.
    """
    given = given.as_dict() if isinstance(given, hyperparams.Config) else given
    if not isinstance(given, Mapping):
        return
    known = [key for key in vars(config) if key not in config.RESERVED_ATTR]
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or sorted(known)
            raise KeyError(f"{path}{key} is not a field of the experiment: did you mean {either(near)}?")
        below = getattr(config, key)
        if isinstance(below, hyperparams.ParamsDict):
            refuse_unknown_fields(below, value, f"{path}{key}.")


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises a `ConfigurationError` with field, value and what is allowed unless the condition holds."""
    if not condition:
        raise ConfigurationError(f"{field} must be {allowed}; received {value!r}.")


def require_one_of(chosen: Any, config: hyperparams.OneOfConfig, field: str) -> None:
    """Raises a `ConfigurationError` unless `chosen` is one of the types of a one-of config."""
    known = sorted(key for key in vars(config) if key not in (*config.RESERVED_ATTR, "type"))
    if chosen not in known:
        near = difflib.get_close_matches(str(chosen), known, n=3)
        hint = f" Did you mean {either(near)}?" if near else ""
        raise ConfigurationError(f"{field} must be one of {', '.join(known)}; received {chosen!r}.{hint}")


def is_integer(value: Any, least: int) -> bool:
    """Whether the value is an integer of `least` or more."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether the value is a real number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def either(names: list[str]) -> str:
    """The names with "or" before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
