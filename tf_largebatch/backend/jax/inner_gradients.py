"""Gradients that a model takes inside its own forward pass: forces, gradient penalties, saliency maps.

The backward pass of an inner gradient uses the layers' private values once more, and no rule records that use. So every
recorded layer's outputs pass a guard, an identity with a backward pass of its own. Where it runs while the forward pass
still does, it belongs to an inner gradient, which then passes a second identity: if the step's own backward pass comes
through that one, the loss depends on the inner gradient, and the step is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import keras

from tf_largebatch import keras_internals
from tf_largebatch.norms.recorder import inner_gradient_message


@contextlib.contextmanager
def refusing_forward_mode() -> Iterator[None]:
    """Within it a model that differentiates itself in forward mode is refused in one sentence, not in JAX's words.

    JAX differentiates nothing in forward mode that has a backward pass of its own, as guards and recorded tensors have.

    Raises:
        ValueError: In place of JAX's error.
    """
    try:
        yield
    except (NotImplementedError, TypeError) as error:
        if not any(words in str(error) for words in ("custom_lin", "forward-mode differentiation")):
            raise
        raise ValueError(
            "Per-example gradient norms are not available: the model takes a derivative in forward mode (jax.jvp, "
            "jax.jacfwd) through its own layers, which JAX cannot do while their norms are measured. Take it in "
            "reverse mode (jax.grad, jax.vjp, jax.jacrev), have the layer (or model) that takes it measured by the "
            "slow rule for any layer (tf_largebatch.norms.use_generic(layer)), or train with gradient_norms='replica'."
        ) from error


class InnerGradients:
    """Guards the layers' outputs in one forward pass.

    Attributes:
        in_forward_pass: Whether the forward pass, the loss included, is still being traced.
    """

    def __init__(self) -> None:
        self.in_forward_pass = True
        self._needed: list[str] = []

    def guard(self, outputs: Any, layer: str) -> Any:
        """Returns the outputs of a recorded layer, nested arrays, behind a guard; masks stay with their arrays.

        Args:
            outputs: What the layer's rule returned.
            layer: The layer's path, for the message.
        """

        def watched(t: jax.Array) -> jax.Array:
            @jax.custom_vjp
            def identity(t: jax.Array) -> jax.Array:
                return t

            def backward(_: None, d: jax.Array) -> tuple[jax.Array]:
                self._needed.append(layer)
                return (d,)

            identity.defvjp(lambda t: (t, None), backward)
            return identity(t)

        def guarded(t: Any) -> Any:
            if not keras.ops.is_tensor(t) or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(t.dtype)):
                return t

            @jax.custom_vjp
            def identity(t: jax.Array) -> jax.Array:
                return t

            def backward(_: None, d: jax.Array) -> tuple[jax.Array]:
                return (watched(d) if self.in_forward_pass else d,)

            identity.defvjp(lambda t: (t, None), backward)
            behind = identity(t)
            mask = keras_internals.keras_mask(t)
            if mask is not None:
                keras_internals.set_keras_mask(behind, mask)
            return behind

        return keras.tree.map_structure(guarded, outputs)

    def end_forward_pass(self) -> None:
        """From here on backward passes are the step's own."""
        self.in_forward_pass = False

    def check(self) -> None:
        """Raises ValueError if the loss depends on an inner gradient."""
        if self._needed:
            raise ValueError(inner_gradient_message(sorted(set(self._needed))))
