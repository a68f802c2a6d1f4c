"""The operations that made a classifier's output: logits and logarithms of probabilities are read behind them.

JAX's arrays do not know how they were made. So the classifier is traced to a program of primitives (a jaxpr), which is
then run one primitive after the other, each value kept with the primitive that made it. This module goes back through
them (casts, reshapes, clips, sums, products with positive constants, stacked members of an ensemble) to a softmax,
sigmoid or exponential, and computes the logarithm of each. XLA drops what is not needed of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from tf_largebatch.backend.jax.equations import run_equation
from tf_largebatch.core.rates import compute_dtype


@dataclasses.dataclass(frozen=True)
class Made:
    """A value, and how it was made.

    Attributes:
        value: A tensor.
        primitive: Name of the JAX primitive that made it; empty for an argument or a constant.
        params: The primitive's parameters.
        inputs: What the primitive was given.
        known: The value as a NumPy array where it is a constant of the program, else None.
    """

    value: Any
    primitive: str = ""
    params: Any = None
    inputs: Sequence[Made] = ()
    known: Any = None


def followed(function: Callable[[Any], Any], x: Any) -> Any:
    """Returns `function(x)` with its operations, which `logits` and `logarithm` read: a `Made` for each tensor.

    Args:
        function: Of a tensor, to nested tensors. What it assigns to variables must stay in a scope of its own.
        x: A tensor.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(x)
    return jax.tree.unflatten(jax.tree.structure(shapes), _run(closed, [Made(x)]))


def value(outputs: Any) -> Any:
    """Returns what the function returned, without its operations."""
    return outputs.value if isinstance(outputs, Made) else outputs


def logits(outputs: Any, kind: str) -> Any:
    """Returns the logits z where outputs are directly `softmax(z)` or `sigmoid(z)`, else None.

    Args:
        outputs: What `followed` returned. A tensor does not know how it was made.
        kind: "Softmax" or "Sigmoid".
    """
    if not isinstance(outputs, Made):
        return None
    made = _behind(outputs, _UNCHANGED)
    if kind == "Sigmoid":
        return _cast(made.inputs[0].value) if made.primitive == "logistic" else None
    found = _softmax_of(made)
    return None if found is None or found[1] != (made.value.ndim - 1,) else _cast(found[0].value)


def logarithm(outputs: Any) -> Any:
    """Returns the logarithm of probabilities; None if no softmax, sigmoid or exponential is found behind them.

    Args:
        outputs: What `followed` returned. A tensor does not know how it was made.
    """
    rule = _RULES.get(outputs.primitive) if isinstance(outputs, Made) else None
    return None if rule is None else rule(outputs)


def _run(closed: Any, inputs: Sequence[Made]) -> list[Made]:
    """Runs a program: functions compiled within it are run in place, so that nothing is hidden in them."""
    jaxpr, constants = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, ())
    made: dict[Any, Made] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        made[variable] = Made(constant, known=_known(constant))
    for equation in jaxpr.eqns:
        found = [Made(a.val, known=a.val) if isinstance(a, core.Literal) else made[a] for a in equation.invars]
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        results = _one(jaxpr, equation, found) if inner is None else _run(inner, found)
        made.update(zip(equation.outvars, results, strict=True))
    return [Made(v.val, known=v.val) if isinstance(v, core.Literal) else made[v] for v in jaxpr.outvars]


def _one(program: Any, equation: Any, inputs: list[Made]) -> list[Made]:
    name = equation.primitive.name
    results = run_equation(program, equation, [one.value for one in inputs])
    known = inputs[0].known if name in _SAME_NUMBERS and inputs else None
    return [Made(value, name, equation.params, inputs, known) for value in results]


def _known(constant: Any) -> Any:
    return None if isinstance(constant, jax.core.Tracer) else constant


def _behind(made: Made, primitives: Sequence[str]) -> Made:
    """Returns what is behind primitives that leave numbers as they are."""
    while made.primitive in primitives:
        made = made.inputs[0]
    return made


def _softmax_of(made: Made) -> tuple[Made, tuple[int, ...]] | None:
    """Returns the logits and the axes where the value is `exp(z - max z) / sum(exp(z - max z))`, else None."""
    if made.primitive != "div":
        return None
    powers, total = made.inputs
    total = _behind(total, _SAME_NUMBERS)
    if powers.primitive != "exp" or total.primitive != "reduce_sum":
        return None
    if _behind(total.inputs[0], _UNCHANGED) is not _behind(powers, _UNCHANGED):
        return None
    z = powers.inputs[0]
    if z.primitive == "sub":
        largest = _behind(z.inputs[1], (*_SAME_NUMBERS, "max"))
        if largest.primitive == "reduce_max" and largest.inputs[0] is z.inputs[0]:
            z = z.inputs[0]
    return z, tuple(total.params["axes"])


def _of_first(change: Callable[[Made, Any], Any], made: Made) -> Any:
    """Returns `change(made, logarithm of the first input)`."""
    found = logarithm(made.inputs[0])
    return None if found is None else change(made, found)


def _of_all(combine: Callable[[Made, list[Any]], Any], made: Made) -> Any:
    """Returns `combine(made, logarithms of all inputs)`."""
    found = [logarithm(one) for one in made.inputs]
    return None if any(one is None for one in found) else combine(made, found)


def _clipped(made: Made) -> Any:
    """A clip keeps probabilities from 0 and 1, which logarithms need not: it is left out, gradient and all."""
    inputs = made.inputs[1:2] if made.primitive == "clamp" else made.inputs
    return next((found for found in map(logarithm, inputs) if found is not None), None)


def _product(sign: int, made: Made) -> Any:
    """Of probabilities and positive constants, such as the weights of an ensemble."""
    factors = [logarithm(one) for one in made.inputs]
    if all(factor is None for factor in factors):
        return None
    for i, one in enumerate(made.inputs):
        if factors[i] is None:
            if one.known is None or not np.all(np.asarray(one.known) > 0):
                return None
            factors[i] = jnp.log(jnp.asarray(one.value, compute_dtype(one.known.dtype)))
    return factors[0] + sign * factors[1]


def _quotient(made: Made) -> Any:
    found = _softmax_of(made)
    return _product(-1, made) if found is None else jax.nn.log_softmax(_cast(found[0].value), axis=found[1])


def _summed(made: Made) -> Any:
    return _of_first(lambda made, found: jax.nn.logsumexp(found, axis=tuple(made.params["axes"])), made)


def _bound_again(made: Made, found: Any) -> Any:
    """Applies a primitive that only moves numbers."""
    return jax.lax.convert_element_type(_primitive(made)(found), found.dtype)


def _primitive(made: Made) -> Callable[[Any], Any]:
    params = made.params
    if made.primitive == "reshape":
        return lambda t: jnp.reshape(t, params["new_sizes"])
    if made.primitive == "squeeze":
        return lambda t: jnp.squeeze(t, params["dimensions"])
    if made.primitive == "transpose":
        return lambda t: jnp.transpose(t, params["permutation"])
    return lambda t: jax.lax.broadcast_in_dim(t, params["shape"], params["broadcast_dimensions"])


def _stacked(made: Made, found: list[Any]) -> Any:
    return jnp.stack(found, axis=made.params["axis"])


def _joined(made: Made, found: list[Any]) -> Any:
    return jnp.concatenate(found, axis=made.params["dimension"])


# Primitives that leave each number as it is, and those that only move numbers.
_UNCHANGED = (
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "stop_gradient",
    "reduce_precision",
)
_MOVED = ("reshape", "squeeze", "transpose", "broadcast_in_dim")
_SAME_NUMBERS = (*_UNCHANGED, *_MOVED)
_RULES: dict[str, Callable[[Made], Any]] = {
    "logistic": lambda made: jax.nn.log_sigmoid(_cast(made.inputs[0].value)),
    "exp": lambda made: _cast(made.inputs[0].value),
    "div": _quotient,
    "mul": functools.partial(_product, 1),
    "reduce_sum": _summed,
    "stack": functools.partial(_of_all, _stacked),
    "concatenate": functools.partial(_of_all, _joined),
    **dict.fromkeys(
        ("add", "add_any"), functools.partial(_of_all, lambda _, found: functools.reduce(jnp.logaddexp, found))
    ),
    **dict.fromkeys(_UNCHANGED, functools.partial(_of_first, lambda _, found: found)),
    **dict.fromkeys(_MOVED, functools.partial(_of_first, _bound_again)),
    **dict.fromkeys(("max", "min", "clamp"), _clipped),
}


def _cast(tensor: Any) -> Any:
    return tensor.astype(compute_dtype(tensor.dtype))
