"""Which layer class is measured by which rule.

A rule is a function `rule(layer, tap, *args, **kwargs)` with the arguments of the layer's `call`, which returns what
`call` returns and records every use of the layer's trainable variables with the tap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tf_largebatch.norms.tap import variable_path

Rule = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Entry:
    rule: Rule
    layer_class: type
    methods: tuple[str, ...]
    refuse: Callable[[Any], str | None]


class Registry:
    """Layer rules of one Keras world (`keras` or `tf_keras`)."""

    def __init__(self) -> None:
        self._entries: dict[type, _Entry] = {}

    def register(
        self,
        *layer_classes: type,
        methods: tuple[str, ...] = ("call",),
        refuse: Callable[[Any], str | None] = lambda layer: None,
    ) -> Callable[[Rule], Rule]:
        """Decorator that registers a rule for layer classes.

        A subclass is measured by its base's rule as long as it overrides none of the methods which the rule stands
        in for.

        Args:
            *layer_classes: the classes.
            methods: names of the methods that the rule replaces or relies on.
            refuse: gives the reason why a particular layer cannot be measured, or None.

        Raises:
            ValueError: if a class has a rule already; `unregister` it first.
        """

        def decorate(rule: Rule) -> Rule:
            for cls in layer_classes:
                if cls in self._entries:
                    raise ValueError(
                        f"layer_class {cls.__name__} has a per-example norm rule already: call "
                        f"unregister({cls.__name__}) before you register another."
                    )
                self._entries[cls] = _Entry(rule, cls, methods, refuse)
            return rule

        return decorate

    def unregister(self, layer_class: type) -> None:
        """Removes the rule of a layer class, if there is one."""
        self._entries.pop(layer_class, None)

    def layer_classes(self) -> list[type]:
        """All classes with a rule, by name."""
        return sorted(self._entries, key=lambda cls: cls.__name__)

    def rule_for(self, layer: Any) -> Rule | None:
        """The rule that measures this layer, or None."""
        return None if self.why_not(layer) else self._entry(layer).rule

    def why_not(self, layer: Any) -> str | None:
        """Why this layer cannot be measured, or None if it can."""
        entry = self._entry(layer)
        name = type(layer).__name__
        if entry is None:
            return f"{name} has no rule"
        for method in entry.methods:
            if getattr(type(layer), method, None) is not getattr(entry.layer_class, method, None):
                return f"{name} overrides {entry.layer_class.__name__}.{method}"
        return entry.refuse(layer)

    def _entry(self, layer: Any) -> _Entry | None:
        for cls in type(layer).__mro__:
            if cls in self._entries:
                return self._entries[cls]
        return None


def own_trainable_variables(layer: Any) -> list[Any]:
    """The trainable variables of the layer itself, without its sublayers'."""
    below = {id(v) for sub in layer._flatten_layers(include_self=False) for v in sub.trainable_variables}
    return [v for v in layer.trainable_variables if id(v) not in below]


def check_supported(model: Any, registry: Registry) -> list[Any]:
    """The layers of a model to measure.

    Raises:
        ValueError: if a layer with trainable variables of its own has no rule; names all of them.
    """
    measured, offenders = [], []
    for layer in model._flatten_layers():
        own = own_trainable_variables(layer)
        if not own:
            continue
        reason = registry.why_not(layer)
        if reason is None:
            measured.append(layer)
        else:
            offenders.append(f"{variable_path(own[0]).rsplit('/', 1)[0]} ({reason})")
    if offenders:
        raise ValueError(
            "Per-example gradient norms are not available for these layers: "
            + "; ".join(sorted(offenders))
            + ". Register a rule for them (tf_largebatch.norms.register), freeze them, or train with "
            "gradient_norms='replica'."
        )
    return measured


KERAS = Registry()
