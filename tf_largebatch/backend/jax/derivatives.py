"""Value, gradient and Hessian-vector product of a function of a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax


class Derivatives:
    """Compiles a function of lists of tensors, and its derivatives by the first of its arguments.

    Args:
        function: Takes the weights and further arguments, returns a scalar.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        gradient = jax.grad(function)

        def product(weights: list[Any], vectors: list[Any], *arguments: Any) -> Any:
            return jax.jvp(lambda w: gradient(w, *arguments), (weights,), (vectors,))[1]

        self._value, self._gradient, self._product = jax.jit(function), jax.jit(gradient), jax.jit(product)

    def value(self, weights: Sequence[Any], *arguments: Any) -> Any:
        """Returns the function's value."""
        return self._value(list(weights), *arguments)

    def gradient(self, weights: Sequence[Any], *arguments: Any) -> list[Any]:
        """Returns its gradient, in the shapes of the weights."""
        return list(self._gradient(list(weights), *arguments))

    def product(self, weights: Sequence[Any], vectors: Sequence[Any], *arguments: Any) -> list[Any]:
        """Returns its Hessian times vectors in the shapes of the weights."""
        return list(self._product(list(weights), list(vectors), *arguments))
