"""Combines contractions: drops an axis, joins gates, defers an operand, or adds up several rows of one example."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

from keras import ops

from tf_largebatch.norms.order import over_examples
from tf_largebatch.norms.recorder import Contraction, Tensor
from tf_largebatch.norms.shapes import Size, split_rows
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class WithoutFirstAxis:
    """A contraction whose variable has one more axis, of size 1, in front of the axes of the variable meant."""

    inner: Any

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the inner contributions without the axis."""
        inner = self.inner.contributions(d, examples)
        return ops.reshape(inner, [-1, *inner.shape[2:]])

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the inner norms."""
        return self.inner.squared_norms(d, examples)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the inner norms, and the gradient without the axis."""
        together = self.inner.norms_and_gradient(d)
        return None if together is None else (together[0], ops.reshape(together[1], together[1].shape[1:]))

    def over_rows(self, batch: Size, rows: Size) -> Contraction | None:
        """Returns the inner contraction over rows, without the axis."""
        inner = over_rows(self.inner, batch, rows)
        return None if inner is None else WithoutFirstAxis(inner)


@dataclasses.dataclass(frozen=True)
class RowOf:
    """A contraction of one row of a variable that has `rows` of them."""

    inner: Any
    row: int
    rows: int

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the inner contributions in their row and zeros in the others."""
        inner = self.inner.contributions(d, examples)[:, None]
        return ops.pad(inner, [[0, 0], [self.row, self.rows - self.row - 1], *([0, 0] for _ in inner.shape[2:])])

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the inner norms."""
        return self.inner.squared_norms(d, examples)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `||G_i||^2` and `sum_i G_i`: the contributions add up to the gradient."""
        return squared_norms_and_sum(self.contributions(d, slice(None)))

    def over_rows(self, batch: Size, rows: Size) -> Contraction | None:
        """Returns the inner contraction over rows, in its row of the variable."""
        inner = over_rows(self.inner, batch, rows)
        return None if inner is None else RowOf(inner, self.row, self.rows)


@dataclasses.dataclass
class Deferred:
    """A contraction whose operand is known only after the loop has run."""

    inner: Any = dataclasses.field(init=False)

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the contributions of the contraction that is set after the loop."""
        return self.inner.contributions(d, examples)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the norms of the contraction that is set after the loop."""
        return self.inner.squared_norms(d, examples)

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the norms and gradient of the contraction that is set after the loop."""
        return self.inner.norms_and_gradient(d)

    def over_rows(self, batch: Size, rows: Size) -> Contraction | None:
        """Returns the contraction that is set after the loop, over rows."""
        return over_rows(self.inner, batch, rows)


@dataclasses.dataclass(frozen=True)
class ByGate:
    """`y = [y_1, y_2, ...]` on the last axis, each equally wide and linear in its own block of the variable."""

    gates: tuple[Any, ...]

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the gates' contributions side by side."""
        return ops.concatenate([gate.contributions(d_g, examples) for gate, d_g in self._with_d(d)], axis=-1)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the sum of the gates' squared norms."""
        return functools.reduce(operator.add, (gate.squared_norms(d_g, examples) for gate, d_g in self._with_d(d)))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the sum of the gates' squared norms and their gradients side by side."""
        together = [gate.norms_and_gradient(d_g) for gate, d_g in self._with_d(d)]
        known = [t for t in together if t is not None]
        if len(known) < len(together):
            return None
        squares = functools.reduce(operator.add, (squares for squares, _ in known))
        return squares, ops.concatenate([g for _, g in known], axis=-1)

    def over_rows(self, batch: Size, rows: Size) -> Contraction | None:
        """Returns the gates' contractions over rows; None if a gate has none."""
        gates = [over_rows(gate, batch, rows) for gate in self.gates]
        return None if any(gate is None for gate in gates) else ByGate(tuple(gates))

    def _with_d(self, d: Tensor) -> list[tuple[Any, Tensor]]:
        return list(zip(self.gates, ops.split(d, len(self.gates), axis=-1), strict=True))


@dataclasses.dataclass(frozen=True)
class Folded:
    """A contraction over rows: rows `i rows` to `(i + 1) rows` of `d` [batch rows, ...] are example i's.

    A contraction with a method `over_rows` takes the rows as further positions. The contributions of any other are
    formed and added a few examples at a time.
    """

    inner: Any
    batch: Size
    rows: Size

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i = sum_r G_{i,r}`, shape [b, *w.shape]."""
        merged = over_rows(self.inner, self.batch, self.rows)
        if merged is not None:
            return merged.contributions(split_rows(d, self.batch, self.rows), examples)

        def of_examples(start: Size, count: int) -> Tensor:
            of_rows = self.inner.contributions(d, slice(start * self.rows, (start + count) * self.rows))
            return ops.sum(split_rows(ops.cast(of_rows, "float32"), count, self.rows), axis=1)

        return over_examples(of_examples, self.batch, examples)

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns the squared norms of the sums over the rows."""
        merged = over_rows(self.inner, self.batch, self.rows)
        if merged is not None:
            return merged.squared_norms(split_rows(d, self.batch, self.rows), examples)
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the squared norms of the sums over the rows, and the gradient, which is the sum of these sums."""
        merged = over_rows(self.inner, self.batch, self.rows)
        if merged is not None:
            return merged.norms_and_gradient(split_rows(d, self.batch, self.rows))
        return squared_norms_and_sum(self.contributions(d, slice(None)))


def over_rows(contraction: Any, batch: Size, rows: Size) -> Any:
    """Returns the contraction over examples of `rows` consecutive rows each; None if there is none."""
    method = getattr(contraction, "over_rows", None)
    return None if method is None else method(batch, rows)
