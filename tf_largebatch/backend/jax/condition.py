"""Something that a step does or leaves: a function that assigns variables, in one branch of `lax.cond`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from tf_largebatch.backend.jax.scopes import assign, inner_scope


def do_if(condition: Any, function: Callable[[], None], variables: Sequence[Any]) -> None:
    """Calls a function if a condition holds, which is known only when the step runs.

    Args:
        condition: A boolean scalar.
        function: What to do; it may assign variables.
        variables: The variables that it may assign.
    """

    def done(values: list[Any]) -> list[Any]:
        with inner_scope(zip(variables, values, strict=True)) as scope:
            function()
        return [scope.get_current_value(v) for v in variables]

    values = [v.value for v in variables]
    assign(variables, jax.lax.cond(condition, done, lambda values: values, values))
