"""Dynamic loss scaling on JAX: a norm that overflows skips the step, as a gradient does.

`keras.optimizers.LossScaleOptimizer` looks at the gradients only, which hold those of all devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import keras

from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.keras_internals import trained_variables


def agree_on_overflow(gradients: Sequence[Any], norms: GradientNorms | None = None) -> list[Any]:
    """Makes one gradient NaN if any norm is not finite.

    Call it before `apply`: `LossScaleOptimizer` then skips the step and halves the scale.

    Args:
        gradients: The gradients, arrays or None.
        norms: The gradient norms, if there are any.

    Returns:
        The gradients.
    """
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    if norms is None or not present:
        return list(gradients)
    poison = jnp.where(jnp.all(jnp.isfinite(norms.values)), 0.0, jnp.nan)
    smallest = min(present, key=lambda i: math.prod(gradients[i].shape))
    poisoned = list(gradients)
    poisoned[smallest] = gradients[smallest] + poison.astype(gradients[smallest].dtype)
    return poisoned


def apply(optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Calls `optimizer.apply(gradients, variables)`, inside a `keras.StatelessScope` too.

    `LossScaleOptimizer.apply` assigns to variables inside a condition, which JAX cannot trace. Its `stateless_apply`
    can be traced, but takes all variables that the optimizer was built with: those that are not in `variables`, of
    layers frozen since, get no gradient.

    Args:
        optimizer: The optimizer, built.
        gradients: One gradient a variable, or None.
        variables: The variables, all or some of those that the optimizer was built with.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.apply(gradients, variables)
        return
    every, state = trained_variables(optimizer), optimizer.variables
    gradient_of = {id(variable): gradient for variable, gradient in zip(variables, gradients, strict=True)}
    unknown = [variable.path for variable in variables if id(variable) not in {id(v) for v in every}]
    if unknown:
        raise ValueError(
            f"{optimizer.name} trains the {len(every)} variables that it was built with, and {unknown} are none of "
            "them: compile with a new optimizer after layers were added or unfrozen."
        )
    new_values, new_state = optimizer.stateless_apply(
        [variable.value for variable in state],
        [gradient_of.get(id(variable)) for variable in every],
        [variable.value for variable in every],
    )
    for variable, value in zip([*every, *state], [*new_values, *new_state], strict=True):
        variable.assign(value)
