"""Which inputs a traced function's outputs depend on by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal


def depends_on_other_arrays(function: Callable[[], Sequence[jax.Array]], allowed: Sequence[Any]) -> list[bool]:
    """Returns for each output of a function whether it depends on an array that is neither allowed nor a scalar.

    Args:
        function: Without arguments; what it reads from outside are the arrays in question. It is traced, not run.
        allowed: Arrays that the outputs may depend on.
    """
    closed = jax.make_jaxpr(function)()
    permitted = {id(t) for t in allowed}
    wrong = {
        var
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
        if id(value) not in permitted and getattr(value, "ndim", 0) > 0
    }
    return [bool(needed & wrong) for needed in _needed(closed.jaxpr)]


def _needed(jaxpr: Any) -> list[set[Any]]:
    """For each output the inputs and constants of a program that its value is made of."""
    made_of: dict[Any, set[Any]] = {var: {var} for var in (*jaxpr.invars, *jaxpr.constvars)}

    def of(var: Any) -> set[Any]:
        return set() if isinstance(var, Literal) else made_of.get(var, set())

    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        if inner is None:
            everything = set().union(*(of(var) for var in equation.invars)) if equation.invars else set()
            for var in equation.outvars:
                made_of[var] = everything
            continue
        inside = inner.jaxpr if hasattr(inner, "jaxpr") else inner
        outside = dict(zip(inside.invars, equation.invars, strict=True))
        for var, needed in zip(equation.outvars, _needed(inside), strict=True):
            made_of[var] = set().union(*(of(outside[v]) for v in needed if v in outside)) if needed else set()
    return [of(var) for var in jaxpr.outvars]
