"""Uses whose output has no batch axis and meets the batch by broadcasting, such as a table of positions.

A tensor `u` without a batch axis has one gradient for the whole batch. Each example's part of it is seen where `u` is
repeated for every example before it meets the batch. So the forward pass is traced into a program, and the program is
run by an interpreter which carries `u`, and what is computed from `u` alone, as one value for each example [B, *shape].
Operations on such values run for every example (`jax.vmap`). They end where an operation combines them with the batch:
there each example's value meets its own row.

Whether the result of an operation has the batch axis cannot be told from its size: a batch of one, or of as many
examples as there are positions, looks the same as a table. So the structure check takes the decision for each
operation, with a batch size that no other axis has, and the step's own trace repeats it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Primitive

from tf_largebatch.backend.jax.equations import run_equation
from tf_largebatch.norms.recorder import broadcast_message

_ELEMENTWISE = {"add", "sub", "mul", "div", "max", "min", "pow", "atan2", "select_n", "add_any"}

table_p = Primitive("tf_largebatch_table")
"""Marks the output of a use without a batch axis; its further operands are what the use's contraction holds."""


@table_p.def_abstract_eval
def _table_shape(u: Any, *held: Any, number: int, layer: str) -> Any:
    del held, number, layer
    return u


class Result(enum.Enum):
    """What an operation makes of a tensor without a batch axis."""

    BATCH = "the batch is on axis 0"
    TABLE = "no batch axis"


@dataclasses.dataclass
class Decisions:
    """Decides by the batch size, which divides no other axis; or, without one, repeats what was decided.

    Attributes:
        batch_size: The size that tells the batch axis; None to repeat.
        taken: The operations' names and results, in order.
    """

    batch_size: int | None
    taken: list[tuple[str, Result]]

    def __post_init__(self) -> None:
        self._next = 0

    def __call__(self, equation: Any, layer: str) -> Result:
        """Returns what the operation makes of the table of a layer.

        Raises:
            ValueError: If it is neither, or not what was decided for this place.
        """
        name = equation.primitive.name
        if self.batch_size is None:
            if self._next >= len(self.taken) or self.taken[self._next][0] != name:
                raise ValueError(broadcast_message([layer]))
            self._next += 1
            return self.taken[self._next - 1][1]
        results: set[Result] = set()
        for out in equation.outvars:
            axes = [axis for axis, size in enumerate(out.aval.shape) if size and size % self.batch_size == 0]
            whole = axes == [0] and out.aval.shape[0] == self.batch_size
            if axes and not whole:
                raise ValueError(broadcast_message([layer]))
            results.add(Result.BATCH if axes else Result.TABLE)
        if len(results) != 1:
            raise ValueError(broadcast_message([layer]))
        result = results.pop()
        self.taken.append((name, result))
        return result


@dataclasses.dataclass(frozen=True)
class _Table:
    """A value for each example, [B, *shape], and the layer whose output it comes from."""

    values: jax.Array
    layer: str


def run(
    program: Any,
    constants: Sequence[Any],
    batch_size: int,
    decide: Decisions,
    repeated: Callable[[int, jax.Array, list[jax.Array]], jax.Array],
) -> list[jax.Array]:
    """Runs a traced program with its tables as one value for each example.

    Args:
        program: The jaxpr of a function without arguments.
        constants: The values of its constants.
        batch_size: Number of examples B.
        decide: Tells what each operation makes of a table.
        repeated: Gives the table of a use, by its number, its value and what its contraction holds: [B, *shape].

    Raises:
        ValueError: If more is made of a table than to broadcast it over the batch in a sum or product.
    """
    environment: dict[Any, Any] = dict(zip(program.constvars, constants, strict=True))
    _run(program, environment, batch_size, decide, repeated)
    return [_plain(_read(environment, var)) for var in program.outvars]


def _run(program: Any, environment: dict[Any, Any], batch_size: int, decide: Decisions, repeated: Any) -> None:
    for equation in program.eqns:
        operands = [_read(environment, var) for var in equation.invars]
        if equation.primitive is table_p:
            number, layer = equation.params["number"], equation.params["layer"]
            value, *held = operands
            results: list[Any] = [_Table(repeated(number, value, held), layer)]
        elif equation.primitive.name in ("jit", "pjit") and (
            any(isinstance(t, _Table) for t in operands) or _has_tables(equation.params["jaxpr"].jaxpr)
        ):
            inner = equation.params["jaxpr"]
            inside = dict(zip(inner.jaxpr.constvars, inner.consts, strict=True))
            inside.update(zip(inner.jaxpr.invars, operands, strict=True))
            _run(inner.jaxpr, inside, batch_size, decide, repeated)
            results = [_read(inside, var) for var in inner.jaxpr.outvars]
        elif any(isinstance(t, _Table) for t in operands):
            results = _on_tables(program, equation, operands, batch_size, decide)
        else:
            results = run_equation(program, equation, operands)
        environment.update(zip(equation.outvars, results, strict=True))


def _on_tables(program: Any, equation: Any, operands: list[Any], batch_size: int, decide: Decisions) -> list[Any]:
    layer = next(t.layer for t in operands if isinstance(t, _Table))
    if decide(equation, layer) is Result.TABLE:
        axes = [0 if isinstance(t, _Table) else None for t in operands]
        values = [t.values if isinstance(t, _Table) else t for t in operands]
        found = jax.vmap(lambda *one: tuple(run_equation(program, equation, list(one))), axes, axis_size=batch_size)(
            *values
        )
        return [_Table(t, layer) for t in found]
    name = equation.primitive.name
    if name == "broadcast_in_dim":
        return [_repeated_over_the_batch(equation, operands, layer)]
    if name not in _ELEMENTWISE:
        raise ValueError(broadcast_message([layer]))
    rank = len(equation.outvars[0].aval.shape)
    # The table [B, 1, ...] as rows of the batch [B, ...], the first of its own axes being the batch's.
    rows = [_as_rows(t, rank, layer) if isinstance(t, _Table) else t for t in operands]
    return run_equation(program, equation, [jnp.broadcast_to(t, _with_rows(t, batch_size)) for t in rows])


def _as_rows(table: _Table, rank: int, layer: str) -> jax.Array:
    """Returns a table [B, 1, ...] of the batch's rank as rows [B, ...]."""
    if table.values.ndim != rank + 1 or table.values.shape[1] != 1:
        raise ValueError(broadcast_message([layer]))
    return table.values[:, 0]


def _with_rows(t: Any, batch_size: int) -> tuple[int, ...]:
    return (batch_size, *t.shape[1:]) if getattr(t, "ndim", 0) else ()


def _repeated_over_the_batch(equation: Any, operands: list[Any], layer: str) -> jax.Array:
    """Returns a table that an operation repeats for every example: each example's own value in its place."""
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    table = operands[0].values
    inside = [axis for axis, to in enumerate(axes) if to == 0]
    if inside and table.shape[inside[0] + 1] != 1:
        raise ValueError(broadcast_message([layer]))

    def one(u: jax.Array) -> jax.Array:
        return jax.lax.broadcast_in_dim(u, (1, *shape[1:]), axes)[0]

    return jax.vmap(one)(table)


def _has_tables(program: Any) -> bool:
    return any(
        equation.primitive is table_p
        or (equation.primitive.name in ("jit", "pjit") and _has_tables(equation.params["jaxpr"].jaxpr))
        for equation in program.eqns
    )


def _plain(value: Any) -> jax.Array:
    """Returns a result of the program, which must not be a table.

    It would have a batch axis that it should not have.
    """
    if isinstance(value, _Table):
        raise ValueError(broadcast_message([value.layer]))
    return value


def _read(environment: dict[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, Literal) else environment[var]
