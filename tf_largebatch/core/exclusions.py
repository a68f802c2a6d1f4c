"""The variables that an argument such as `exclude_from_weight_decay` selects.

Patterns are searched in a variable's *path* (`"stem/conv1/kernel"`): its name is only the last part
(`"kernel"`), in which a pattern such as `"batch_normalization"` would silently find nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from tf_largebatch import check
from tf_largebatch.core.paths import variable_path


def select(variables: Sequence[Any], exclude: Any, argument: str = "exclude") -> tuple[bool, ...]:
    """Returns which of `variables` are excluded; `Exclusion` states what `exclude` may be.

    Args:
        variables: Variables with `path` (or `name`) and `shape`.
        exclude: None, a pattern, a variable, a predicate, or an iterable of these.
        argument: The argument's name, for messages.

    Returns:
        One boolean per variable, True where it is excluded.

    Raises:
        ValueError: If `exclude` is malformed or a pattern or variable in it matches none of `variables`.
    """
    return Exclusion(argument, exclude).select(variables)


class Exclusion:
    """A set of variables, described before they exist.

    It is an object and not a list, so that an optimizer can hold one without tracking the variables in it as its own
    state.

    Args:
        argument: The name of the argument the description was given to, for messages.
        exclude: None for the default, every variable of fewer than two dimensions. Otherwise one, or an
            iterable, of: a pattern (`re.search` on the path), a variable, a predicate (variable -> bool),
            `{"path": path}` for the one variable of that path. An empty iterable excludes nothing.

    Raises:
        ValueError: If an entry is none of these, or a pattern is empty or not a regular expression.
    """

    def __init__(self, argument: str, exclude: Any = None) -> None:
        self.argument = argument
        self._entries = None if exclude is None else tuple(map(self._parse, _as_entries(exclude)))

    def select(self, variables: Sequence[Any]) -> tuple[bool, ...]:
        """Returns which of `variables` are excluded.

        Args:
            variables: Variables with `path` (or `name`) and `shape`.

        Returns:
            One boolean per variable, True where it is excluded.

        Raises:
            ValueError: If a pattern, path or variable matches none of `variables`. A predicate may match
                none: it speaks of variables in general.
        """
        if self._entries is None:
            return tuple(len(variable.shape) < 2 for variable in variables)
        excluded = [False] * len(variables)
        for entry in self._entries:
            if isinstance(entry, dict):
                matches = self._matches_of_path(entry["path"], variables)
            else:
                matches = [_matches(entry, variable) for variable in variables]
            if not any(matches) and not _is_predicate(entry):
                raise ValueError(self._no_match(entry, variables))
            excluded = [before or now for before, now in zip(excluded, matches, strict=True)]
        return tuple(excluded)

    def to_config(self) -> list[Any] | None:
        """Returns the description as JSON types: None, or a list; variables as `{"path": path}`.

        Raises:
            ValueError: If a predicate is not registered with `keras.saving.register_keras_serializable`.
        """
        return None if self._entries is None else [self._serialize(entry) for entry in self._entries]

    def _parse(self, entry: Any) -> Any:
        if isinstance(entry, str):
            try:
                pattern = re.compile(entry)
            except re.error as error:
                remedy = f"{error}; use re.escape() for a literal name"
                raise ValueError(check.message(self.argument, "a regular expression", entry, remedy)) from error
            check.require(
                bool(entry), self.argument, entry, "a pattern that is not empty", "pass [] to exclude nothing"
            )
            return pattern
        if isinstance(entry, Mapping) and "class_name" in entry:
            return keras.saving.deserialize_keras_object(dict(entry))
        if isinstance(entry, Mapping) and set(entry) == {"path"}:
            return dict(entry)
        # A layer can be called too, but is no predicate.
        is_layer = hasattr(entry, "trainable_variables")
        if isinstance(entry, re.Pattern) or _is_variable(entry) or (callable(entry) and not is_layer):
            return entry
        rule = "one, or a list, of patterns on the variable's path, variables, and predicates of a variable"
        raise ValueError(check.message(self.argument, rule, entry))

    def _serialize(self, entry: Any) -> Any:
        if isinstance(entry, re.Pattern):
            return entry.pattern
        if isinstance(entry, dict):
            return dict(entry)
        if _is_variable(entry):
            return {"path": variable_path(entry)}
        registered = entry if inspect.isroutine(entry) or inspect.isclass(entry) else type(entry)
        if keras.saving.get_registered_object(keras.saving.get_registered_name(registered)) is not registered:
            remedy = (
                "decorate the predicate with @keras.saving.register_keras_serializable(), or pass patterns or variables"
            )
            raise ValueError(check.message(self.argument, "registered with Keras to be saved", entry, remedy))
        return keras.saving.serialize_keras_object(entry)

    def _matches_of_path(self, path: str, variables: Sequence[Any]) -> list[bool]:
        """Finds the variable that a saved path means; Keras may have dropped the beginning of the path.

        A layer inside a `Sequential` or subclassed model loses the model's name from its variables' paths
        when the model is loaded: "sequential/dense/kernel" becomes "dense/kernel".
        """
        paths = [variable_path(variable) for variable in variables]
        matches = [other == path for other in paths]
        if not any(matches):
            matches = [f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}") for other in paths]
        if sum(matches) > 1:
            found = [other for other, match in zip(paths, matches, strict=True) if match]
            remedy = (
                f"the saved path may mean any of {found}; give the layers different names, or load with compile=False "
                "and compile anew"
            )
            raise ValueError(check.message(self.argument, "the path of one variable", path, remedy))
        return matches

    def _no_match(self, entry: Any, variables: Sequence[Any]) -> str:
        if isinstance(entry, re.Pattern):
            rule, value = "a pattern found in the path of a trained variable", entry.pattern
        elif isinstance(entry, dict):
            rule, value = "the path of a trained variable", entry["path"]
        else:
            rule, value = "a trained variable", variable_path(entry)
        examples = ", ".join(repr(variable_path(variable)) for variable in variables[:5])
        remedy = (
            f"it matches none of the {len(variables)}, such as {examples} (the paths of a loaded model lack the names "
            "of the models that its layers are in)"
        )
        return check.message(self.argument, rule, value, remedy)


def _as_entries(exclude: Any) -> Iterable[Any]:
    single = isinstance(exclude, str | re.Pattern | Mapping) or _is_variable(exclude) or callable(exclude)
    return [exclude] if single or not isinstance(exclude, Iterable) else exclude


def _is_variable(entry: Any) -> bool:
    return hasattr(entry, "assign") and hasattr(entry, "shape")


def _is_predicate(entry: Any) -> bool:
    return not isinstance(entry, re.Pattern | dict) and not _is_variable(entry)


def _matches(entry: re.Pattern | Callable[[Any], bool] | Any, variable: Any) -> bool:
    if isinstance(entry, re.Pattern):
        return entry.search(variable_path(variable)) is not None
    if _is_variable(entry):
        return entry is variable or entry is getattr(variable, "value", None)
    return bool(entry(variable))
