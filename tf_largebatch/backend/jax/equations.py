"""Single equations of a traced program, run one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import Literal


def run_equation(program: Any, equation: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of one equation, run as a program of its own: some primitives hold functions.

    Args:
        program: The `Jaxpr` that the equation belongs to.
        equation: The equation.
        operands: A value for each of `equation.invars`; those of literals are not read.
    """
    values = {v: t for v, t in zip(equation.invars, operands, strict=True) if not isinstance(v, Literal)}
    alone = program.replace(
        constvars=[],
        invars=list(values),
        outvars=list(equation.outvars),
        eqns=[equation],
        effects=equation.effects,
        debug_info=program.debug_info.with_unknown_names(),
    )
    return jax.core.eval_jaxpr(alone, [], *values.values())
