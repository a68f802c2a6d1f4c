"""The brute-force reference's forward and backward passes on JAX, operation by operation.

Nothing is compiled: within `jax.disable_jit` a layer inside a loop over time is called with values, as in TensorFlow's
eager execution. Each pass runs in a scope of its own, so that no variable changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tf_largebatch import keras_internals
from tf_largebatch.backend.jax.scopes import InnerScope, inner_scope
from tf_largebatch.norms.layer_calls import LayerCall, floats_of, is_float, record
from tf_largebatch.norms.registry import own_trainable_variables
from tf_largebatch.norms.rules.generic import in_mode


def recorded_run(model: Any, x: Any, training: bool, state: list[Any]) -> list[LayerCall]:
    """Returns the calls of the model's layers with variables of their own."""
    with jax.disable_jit(), inner_scope():
        return record(model, x, training, state, _require_values)[0]


def differentiated_run(
    model: Any, x: Any, training: bool, state: list[Any], loss: Callable[[Any], Any], variables: Sequence[Any]
) -> tuple[list[LayerCall], list[list[Any]], list[Any]]:
    """Runs the model forward, and once more forward and backward with zeros added to the outputs of each call.

    The gradients at the zeros are those at the outputs.

    Returns:
        The calls; for each call the gradients of the loss at its floating-point outputs, and the gradients of the
        variables. Each is None where it is zero.
    """
    calls = recorded_run(model, x, training, state)

    def value(zeros: list[list[jax.Array]], values: list[jax.Array]) -> jax.Array:
        of_call = iter(zeros)

        def with_zeros_added(layer: Any, outputs: Any) -> Any:
            del layer
            added = iter(next(of_call))
            return keras.tree.map_structure(lambda t: _sum(t, next(added)) if is_float(t) else t, outputs)

        with _LeafScope(zip(variables, values, strict=True)):
            return loss(record(model, x, training, state, with_zeros_added)[1])

    zeros = [[jnp.zeros_like(t) for t in call.floats] for call in calls]
    with jax.disable_jit():
        d_calls, gradients = jax.grad(value, argnums=(0, 1))(zeros, [v.value for v in variables])
    return calls, [[_unless_zero(d) for d in of_call] for of_call in d_calls], [_unless_zero(g) for g in gradients]


def gradients_of(call: LayerCall, d: Sequence[Any], check: bool = False) -> list[tuple[Any, jax.Array]]:
    """Returns the gradients of a layer's own variables against `d` at its outputs, float32, where there are any."""
    own = own_trainable_variables(call.layer)
    state = {id(v): value for v, value in call.state}  # among it kernels to which spectral normalization assigns

    def outputs_on(values: list[jax.Array]) -> list[jax.Array]:
        with inner_scope([*call.state, *zip(own, values, strict=True)]):
            return floats_of(in_mode(call.training, lambda: call.layer(*call.args, **call.kwargs)))

    with jax.disable_jit():
        outputs, backward = jax.vjp(outputs_on, [state.get(id(v), v.value) for v in own])
        if check:
            call.check_same(outputs)
        d = [jnp.zeros_like(y) if part is None else part.astype(y.dtype) for y, part in zip(outputs, d, strict=True)]
        (shares,) = backward(d)
    found = [(v, _unless_zero(share)) for v, share in zip(own, shares, strict=True)]
    return [(v, share.astype("float32")) for v, share in found if share is not None]


class _LeafScope(InnerScope):
    """A scope in which a variable's gradient is that at its present value, as on TensorFlow.

    Spectral normalization assigns to a kernel and then uses it. Its gradient does not flow into the assigned value.
    """

    def __init__(self, values: Iterable[tuple[Any, jax.Array]]) -> None:
        values = list(values)
        super().__init__(values)
        self._leaves = {id(v): value for v, value in values}

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Assigns the value with the gradient of the variable."""
        variable, value = update
        leaf = self._leaves.get(id(variable))
        if leaf is not None:
            value = jax.lax.stop_gradient(value) + (leaf - jax.lax.stop_gradient(leaf))
        super().add_update((variable, value))


def _require_values(layer: Any, outputs: Any) -> Any:
    if any(isinstance(t, jax.core.Tracer) for t in floats_of(outputs)):
        raise ValueError(
            f"The brute-force reference cannot repeat layer {layer.path!r}, which runs inside a transformation of JAX "
            "of its own."
        )
    return outputs


def _sum(t: jax.Array, zeros: jax.Array) -> jax.Array:
    """Returns the sum, with the mask that Keras keeps at the first term."""
    total = t + zeros
    mask = keras_internals.keras_mask(t)
    if mask is not None:
        keras_internals.set_keras_mask(total, mask)
    return total


def _unless_zero(t: jax.Array) -> jax.Array | None:
    return t if bool(jnp.any(t != 0)) else None
