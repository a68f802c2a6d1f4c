"""Functions that read variables, compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras


def compiled(function: Callable[..., Any], variables: Sequence[Any] = ()) -> Callable[..., Any]:
    """Returns a function of tensors, compiled, that reads the variables' present values when it is called.

    Args:
        function: A function of nested tensors, which writes no variable.
        variables: The Keras variables that it reads. Their values are arguments of the compiled program; those of
            others would be constants in it.
    """

    @jax.jit
    def program(values: list[Any], *arguments: Any) -> Any:
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return function(*arguments)

    return lambda *arguments: program([variable.value for variable in variables], *arguments)
