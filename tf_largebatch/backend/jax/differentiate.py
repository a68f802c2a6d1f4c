"""A forward and backward pass without norms, by jax.grad."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from tf_largebatch.backend.jax.scopes import assign, inner_scope


def value_and_gradients(
    forward: Callable[[], Any],
    loss: Callable[[Any], Any],
    variables: Sequence[Any],
    scale: Callable[[Any], Any] = lambda loss: loss,
) -> tuple[Any, list[Any], Any]:
    """Runs a model forward and differentiates a loss of its outputs.

    What forward and loss assign to variables is assigned in the scope around.

    Args:
        forward: Computes the outputs.
        loss: Of the outputs, a scalar.
        variables: Keras variables.
        scale: What of the loss is differentiated.

    Returns:
        The outputs; for each variable its gradient, None where the loss does not depend on it; and the loss.
    """
    assigned: list[Any] = []
    reached: set[int] = set()

    def function(values: list[jax.Array]) -> tuple[jax.Array, Any]:
        watched = [_watched(functools.partial(reached.add, i), value) for i, value in enumerate(values)]
        with inner_scope(zip(variables, watched, strict=True), collect_losses=True) as scope:
            outputs = forward()
            unscaled = loss(outputs)
            target = scale(unscaled)
        assigned[:] = scope.assigned
        return target, (outputs, unscaled, scope.changes())

    gradients, (outputs, unscaled, changes) = jax.grad(function, has_aux=True)([v.value for v in variables])
    assign(assigned, changes)
    return outputs, [g if i in reached else None for i, g in enumerate(gradients)], unscaled


def gradients_at(function: Callable[..., Any], tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Returns a scalar function's value at some tensors and its gradients there, zeros where there is none.

    Args:
        function: Of the tensors, one argument each.
        tensors: Floating tensors.
    """
    value, gradients = jax.value_and_grad(lambda arguments: function(*arguments))(list(tensors))
    return value, gradients


def dense(gradient: Any) -> jax.Array:
    """Returns a gradient as a dense tensor."""
    return gradient


def run_after(done: Sequence[Any], inputs: Any) -> Any:
    """Returns nested tensors that are there once the tensors `done` are."""
    return jax.lax.optimization_barrier((list(done), inputs))[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(note: Callable[[], None], value: jax.Array) -> jax.Array:
    """Returns the value and calls `note` while the backward pass is traced, if a gradient comes back to it.

    jax.grad alone gives zeros for what a function does not depend on.
    """
    return value


def _watched_forward(note: Callable[[], None], value: jax.Array) -> tuple[jax.Array, None]:
    return value, None


def _watched_backward(note: Callable[[], None], _: None, d: jax.Array) -> tuple[jax.Array]:
    note()
    return (d,)


_watched.defvjp(_watched_forward, _watched_backward)
