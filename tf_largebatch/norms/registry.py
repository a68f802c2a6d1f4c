"""Maps each layer class to the rule that measures it.

A rule is a function `rule(layer, recorder, *args, **kwargs)` with the arguments of the layer's `call`, which returns
what `call` returns and records every use of the layer's trainable variables with the recorder.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from tf_largebatch.check import require
from tf_largebatch.core.paths import variable_path
from tf_largebatch.keras_internals import layers_inside, layers_within
from tf_largebatch.norms.overrides import overridden_method, reached_methods

Rule = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Entry:
    rule: Rule
    layer_class: type
    methods: tuple[str, ...]
    refuse: Callable[[Any], str | None]
    covers: Callable[[Any], list[Any]]
    wraps: bool


class Registry:
    """Holds the layer rules of one Keras world (`keras` or `tf_keras`).

    Args:
        register: The public name of `register`, for error messages.
        generic: The public name of `use_generic`, for error messages.
    """

    def __init__(
        self, register: str = "tf_largebatch.norms.register", generic: str = "tf_largebatch.norms.use_generic"
    ) -> None:
        self._where_to_register = register
        self._how_to_get_generic = generic
        self._entries: dict[type, _Entry] = {}
        self._by_name: dict[str, Callable[[type], None]] = {}
        self._generic_rule: Rule | None = None
        self._generic_layers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._generic_allowed = False

    def register(
        self,
        *layer_classes: type | str,
        methods: tuple[str, ...] | None = None,
        refuse: Callable[[Any], str | None] = lambda layer: None,
        covers: Callable[[Any], list[Any]] = lambda layer: [],
        wraps: bool = False,
    ) -> Callable[[Rule], Rule]:
        """Returns a decorator that registers a rule for layer classes.

        A subclass is measured by its base's rule as long as it overrides none of the methods that the rule replaces or
        relies on.

        Args:
            *layer_classes: The classes. A string names the class of a package that need not be installed, as
                "package.module.Class"; the rule is entered when the first layer of the class is looked up.
            methods: Names of the methods and properties that the rule replaces or relies on. None for all that the
                class's `call` reaches.
            refuse: Returns why a particular layer cannot be measured, or None.
            covers: Returns the layers inside a layer whose variables the rule records itself. They need no rule, and
                their own rules do not run.
            wraps: Whether the rule also runs where it has no variables to record, because the layers inside need it.

        Raises:
            ValueError: If a class has a rule already; `unregister` it first.
        """

        def decorate(rule: Rule) -> Rule:
            def enter(cls: type) -> None:
                guarded = reached_methods(cls) if methods is None else methods
                self._entries[cls] = _Entry(rule, cls, guarded, refuse, covers, wraps)

            for cls in layer_classes:
                name = cls if isinstance(cls, str) else cls.__name__
                require(
                    cls not in self._entries and cls not in self._by_name,
                    "layer_classes",
                    cls,
                    "without a rule",
                    f"call unregister({name}) before you register another rule",
                )
                if isinstance(cls, str):
                    self._by_name[cls] = enter
                else:
                    enter(cls)
            return rule

        return decorate

    def unregister(self, layer_class: type | str) -> None:
        """Removes the rule of a layer class, if there is one."""
        if isinstance(layer_class, str):
            self._by_name.pop(layer_class, None)
        else:
            self._entries.pop(layer_class, None)
            self._by_name.pop(_qualified_name(layer_class), None)

    def layer_classes(self) -> list[type]:
        """Returns all classes with a rule, sorted by name."""
        return sorted(self._entries, key=lambda cls: cls.__name__)

    def register_generic(self, rule: Rule) -> Rule:
        """Registers the rule for any layer. It runs for marked layers, and for all without another where allowed."""
        self._generic_rule = rule
        return rule

    def mark_generic(self, layer: Any) -> None:
        """Measures one layer, with all layers inside it, by the generic rule, even if it has another rule."""
        self._generic_layers.add(layer)

    def allowing_generic(self) -> Registry:
        """Returns this registry with the generic rule for every layer without another. Both share their rules."""
        registry = Registry()
        vars(registry).update(vars(self), _generic_allowed=True)
        return registry

    def rule_for(self, layer: Any) -> Rule | None:
        """Returns the rule that measures this layer, or None."""
        if self._is_generic(layer):
            return self._generic_rule
        entry = self._entry(layer)
        return None if entry is None or self.why_not(layer) else entry.rule

    def why_not(self, layer: Any) -> str | None:
        """Returns why this layer cannot be measured, or None if it can."""
        return None if self._is_generic(layer) else self._why_no_exact_rule(layer)

    def covered(self, layer: Any) -> list[Any]:
        """Returns the layers inside a layer whose variables the layer's rule records itself."""
        entry = self._entry(layer)
        covered = [] if entry is None else entry.covers(layer)
        if layer in self._generic_layers or (_variables(layer, covered) and self._is_generic(layer)):
            return layers_inside(layer)
        return covered

    def wraps(self, layer: Any) -> bool:
        """Returns whether the layer's rule runs because the layers inside need it."""
        entry = self._entry(layer)
        return entry is not None and entry.wraps and bool(layer.trainable_variables)

    def _is_generic(self, layer: Any) -> bool:
        if self._generic_rule is None or _is_quantized(layer):
            return False
        return layer in self._generic_layers or (self._generic_allowed and self._why_no_exact_rule(layer) is not None)

    def _why_no_exact_rule(self, layer: Any) -> str | None:
        entry = self._entry(layer)
        name = type(layer).__name__
        if _is_quantized(layer):
            return f"{name} is quantized"
        if entry is None:
            return f"{name} has no rule"
        own_call = vars(layer).get("call")
        if own_call is not None and not getattr(own_call, "is_interception", False):
            return f"this {name} has a call of its own"
        method = overridden_method(type(layer), entry.layer_class, entry.methods)
        if method is not None:
            return f"{name} overrides {entry.layer_class.__name__}.{method}"
        return entry.refuse(layer)

    def _entry(self, layer: Any) -> _Entry | None:
        for cls in type(layer).__mro__:
            if cls not in self._entries and _qualified_name(cls) in self._by_name:
                self._by_name[_qualified_name(cls)](cls)
            if cls in self._entries:
                return self._entries[cls]
        return None


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_quantized(layer: Any) -> bool:
    """Returns whether Keras runs the layer's `quantized_call` in place of its `call`."""
    return getattr(getattr(layer, "dtype_policy", None), "quantization_mode", None) is not None


def own_trainable_variables(layer: Any) -> list[Any]:
    """Returns the trainable variables of the layer itself, without those of its sublayers."""
    below = {id(v) for sub in layers_inside(layer) for v in sub.trainable_variables}
    return [v for v in layer.trainable_variables if id(v) not in below]


def _variables(layer: Any, covered: list[Any]) -> list[Any]:
    """Returns the trainable variables that a layer's rule records: its own and those of the layers that it covers."""
    inside = {id(v): v for sub in covered for v in sub.trainable_variables}
    return [*own_trainable_variables(layer), *inside.values()]


def check_supported(model: Any, registry: Registry) -> list[Any]:
    """Returns the layers of a model to measure.

    Raises:
        ValueError: If a layer with trainable variables of its own has no rule. The message names all such layers.
    """
    layers = layers_within(model)
    covered_by = {id(layer): registry.covered(layer) for layer in layers}
    covered = {id(sub) for subs in covered_by.values() for sub in subs}
    measured, offenders = [], []
    for layer in layers:
        if id(layer) in covered:
            continue
        recorded = _variables(layer, covered_by[id(layer)])
        if not recorded and not registry.wraps(layer):
            continue
        reason = registry.why_not(layer)
        if reason is None:
            measured.append(layer)
        else:
            own = own_trainable_variables(layer)
            path = variable_path(own[0]).rsplit("/", 1)[0] if own else getattr(layer, "path", layer.name)
            offenders.append(f"{path} ({reason})")
    if offenders:
        raise ValueError(
            "Per-example gradient norms are not available for these layers: "
            + "; ".join(sorted(offenders))
            + f". Register a rule for them ({registry._where_to_register}),"
            + (
                f" have them measured by the slow rule for any layer ({registry._how_to_get_generic}),"
                if registry._generic_rule
                else ""
            )
            + " freeze them, or train with gradient_norms='replica'."
        )
    return measured


def check_replacements(model: Any, replacements: Mapping[Any, Any], registry: Registry) -> list[Any]:
    """Returns the layers to measure in the replacements.

    Raises:
        ValueError: If a layer to be replaced is not the model's own or has its rule run by another layer's, a
            replacement is not built, or has no rule.
    """
    layers = {id(layer) for layer in layers_within(model)}
    covered = {id(sub) for layer in layers_within(model) for sub in registry.covered(layer)}
    found: dict[int, Any] = {}
    for layer, replacement in replacements.items():
        if id(layer) not in layers or id(layer) in covered:
            raise ValueError(
                f"replacements has {layer.name!r}, which is no layer of {model.name!r} that is called by itself: "
                "pass layers of the model."
            )
        if not replacement.built:
            raise ValueError(
                f"replacements has {replacement.name!r} in place of {layer.name!r}, which is not built: build it with "
                "the same input shape."
            )
        found.update((id(inner), inner) for inner in check_supported(replacement, registry))
    return list(found.values())


KERAS = Registry()
