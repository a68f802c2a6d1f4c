"""Keras code with state inside JAX's functional transformations.

Keras code reads `variable.value` and calls `variable.assign`. Within a `keras.StatelessScope` both work on traced
values instead of the variables. A transformation such as `jax.grad` or `lax.scan` needs a scope of its own: the values
that its function assigns must leave as outputs, and are assigned outside.

    def function(x):
        with inner_scope() as scope:
            y = layer(x)                     # may assign moving averages
        return y, scope.changes()
    y, changes = transformed(function)(x)
    assign(variables, changes)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tf_largebatch import keras_internals


class InnerScope(keras.StatelessScope):
    """A scope that begins with the values of the scope around it, if there is one, and notes what is assigned in it.

    Args:
        values: Pairs of a variable and its value in here, in place of the one outside.
        collect_losses: Whether `add_loss` of layers is collected.

    Attributes:
        assigned: The variables that were assigned in here, in order.
    """

    def __init__(self, values: Iterable[tuple[Any, Any]] = (), collect_losses: bool = False) -> None:
        super().__init__(collect_losses=collect_losses, initialize_variables=False)
        outer = keras_internals.stateless_scope()
        if outer is not None:
            self.state_mapping.update(outer.state_mapping)
        for variable, value in values:
            self.state_mapping[id(variable)] = value
        self._assigned: dict[int, Any] = {}

    @property
    def assigned(self) -> list[Any]:
        """The variables that were assigned in here, in the order of the first assignment."""
        return list(self._assigned.values())

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Keras calls this for every assignment."""
        variable, _ = update
        self._assigned[id(variable)] = variable
        super().add_update(update)

    def replace(self, variable: Any, value: Any) -> None:
        """Gives a variable another value in here, which does not count as an assignment."""
        self.state_mapping[id(variable)] = value

    def changes(self) -> list[Any]:
        """Returns the new values of `assigned`."""
        return [self.state_mapping[id(variable)] for variable in self._assigned.values()]


def inner_scope(values: Iterable[tuple[Any, Any]] = (), collect_losses: bool = False) -> InnerScope:
    """Returns a scope to enter; see `InnerScope`."""
    return InnerScope(values, collect_losses)


def assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assigns values that left a transformation, in the scope around it or to the variables themselves."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
