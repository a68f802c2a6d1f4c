"""Declares the arguments of a run as command-line flags, and lists them."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def flag(
    default: Any,
    text: str,
    choices: tuple[str, ...] | None = None,
    name: str | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """Declares a field of a section of `TrainConfig` as a flag.

    Args:
        default: The flag's default; None where it depends on other flags.
        text: Help.
        choices: The allowed values.
        name: Name of the flag; default: the field's name.
        words: What is allowed beside a number.
    """
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "flag": name, "words": words})


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag and the field of `TrainConfig` that holds its value.

    Attributes:
        name: Its name on the command line.
        section: The section of `TrainConfig` that holds its value.
        field: The section's field.
        type: `str`, `int`, `float` or `bool`.
        default: The value without the flag.
        help: Help.
        choices: The allowed values; None for any.
        words: What is allowed beside a number.
    """

    name: str
    section: str
    field: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] | None
    words: tuple[str, ...] = ()


def flags_of(config_class: type) -> dict[str, Flag]:
    """Returns the flags of all sections of a configuration, by name, in order."""
    found: dict[str, Flag] = {}
    for section, section_class in typing.get_type_hints(config_class).items():
        hints = typing.get_type_hints(section_class)
        for field in dataclasses.fields(section_class):
            name = field.metadata["flag"] or field.name
            text, choices = field.metadata["help"], field.metadata["choices"]
            words = field.metadata["words"]
            kind = _plain(hints[field.name])
            found[name] = Flag(name, section, field.name, kind, field.default, text, choices, words)
    return found


def _plain(hint: Any) -> type:
    """Returns the type of an annotation such as `int | None`."""
    kinds = typing.get_args(hint) or (hint,)
    return next(kind for kind in kinds if kind is not types.NoneType)
