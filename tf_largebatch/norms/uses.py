"""The uses of one variable taken together: each example's norm and the variable's gradient.

Contributions are added over the uses before the norm is taken; adding norms instead would over-estimate. Uses of one
kind are joined into one use with more positions. Between kinds the inner products of the contributions are added,
`||sum_u G_u||^2 = sum_{u,v} <G_u, G_v>`, where a contraction knows them. Only what remains is formed and added, a chunk
of examples at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

from keras import ops

from tf_largebatch.norms.kernels import chunk_of
from tf_largebatch.norms.order import after
from tf_largebatch.norms.recorder import Contraction, Tensor, Use
from tf_largebatch.norms.shapes import of_examples, static_or_dynamic_size
from tf_largebatch.norms.sums import squared_norms_and_sum, sum_squares_per_example


@dataclasses.dataclass(frozen=True)
class Together:
    """What the uses of one variable give.

    Attributes:
        squares: `||sum_u G_i^u||^2` of the measured examples, float32, shape [b].
        gradients: Shares of the variable's gradient that came with the norms.
        replaced: Identities of the private values whose ordinary gradients those shares replace.
    """

    squares: Tensor
    gradients: list[Tensor]
    replaced: set[int]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Uses joined into one."""

    contraction: Any
    d: Tensor
    private_values: frozenset[int]


def measure_uses(uses: Sequence[tuple[Use, Tensor]], window: slice | None) -> Together:
    """Norms, and what shares of the gradient come with them.

    Args:
        uses: All uses of one variable that the gradient reaches, each with its `d`.
        window: The measured examples; None for all.
    """
    kinds = _joined(uses)
    products = _cross_products(kinds, slice(None) if window is None else window)
    if products is None:
        parts = tuple((kind.contraction, kind.d) for kind in kinds)
        kinds = [_Kind(Added(parts, tuple(uses[0][0].variable.shape)), kinds[0].d, _private_values(uses))]
        products = []
    # A private value in two kinds has one ordinary gradient for both, which the share of one kind must not replace.
    replaceable = sum(len(kind.private_values) for kind in kinds) == len(_private_values(uses))
    squares: list[Tensor] = []
    gradients: list[Tensor] = []
    replaced: set[int] = set()
    for kind in kinds:
        found, gradient = _norms_and_gradient(kind, window, replaceable)
        squares.append(found)
        if gradient is not None:
            gradients.append(gradient)
            replaced |= kind.private_values
    total = squares[0] if len(kinds) == 1 else ops.maximum(functools.reduce(operator.add, [*squares, *products]), 0.0)
    return Together(total, gradients, replaced)


def _norms_and_gradient(kind: _Kind, window: slice | None, replaceable: bool) -> tuple[Tensor, Tensor | None]:
    free = getattr(kind.contraction, "all_norms_are_free", None)
    every = replaceable and (window is None or (free is not None and free(kind.d)))
    together = kind.contraction.norms_and_gradient(kind.d) if every else None
    if together is None:
        return kind.contraction.squared_norms(kind.d, slice(None) if window is None else window), None
    squares, gradient = together
    return (squares if window is None else squares[window]), gradient


def _joined(uses: Sequence[tuple[Use, Tensor]]) -> list[_Kind]:
    """Returns the uses, those of one kind joined where the kind can be."""
    of_kind: dict[Any, list[tuple[Use, Tensor]]] = {}
    for use, d in uses:
        joins = use.contraction is not None and hasattr(use.contraction, "joined")
        of_kind.setdefault(type(use.contraction) if joins else use.number, []).append((use, d))
    kinds = []
    for same in of_kind.values():
        contractions: list[Any] = [_contraction(use) for use, _ in same]
        contraction, d = contractions[0], same[0][1]
        if len(same) > 1:
            contraction, d = contraction.joined(contractions, [d for _, d in same])
        kinds.append(_Kind(contraction, d, _private_values(same)))
    return kinds


def _private_values(uses: Sequence[tuple[Use, Tensor]]) -> frozenset[int]:
    return frozenset(id(use.private_value) for use, _ in uses)


def _contraction(use: Use) -> Any:
    return PerExample() if use.contraction is None else use.contraction


def _cross_products(kinds: Sequence[_Kind], examples: slice) -> list[Tensor] | None:
    """Returns `2 <G_u, G_v>`, shape [b], for each pair of kinds; None if one of them is not known."""
    products = []
    for i, one in enumerate(kinds):
        for other in kinds[i + 1 :]:
            product = _inner_product(one, other, examples)
            product = _inner_product(other, one, examples) if product is None else product
            if product is None:
                return None
            products.append(2.0 * product)
    return products


def _inner_product(one: _Kind, other: _Kind, examples: slice) -> Tensor | None:
    inner_product = getattr(one.contraction, "inner_product", None)
    return None if inner_product is None else inner_product(one.d, other.contraction, other.d, examples)


@dataclasses.dataclass(frozen=True)
class PerExample:
    """A variable repeated for each example: `d` is `G_i` itself."""

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i = d_i` in float32."""
        return ops.cast(of_examples(d, examples), "float32")

    def all_norms_are_free(self, d: Tensor) -> bool:
        """Always: the contributions are there."""
        del d
        return True

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||d_i||^2`."""
        return sum_squares_per_example(of_examples(d, examples))

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """The contributions add up to the gradient."""
        return squared_norms_and_sum(d)


@dataclasses.dataclass(frozen=True)
class Added:
    """Several uses, each with its own `d`; the `d` that the methods receive is unused."""

    parts: tuple[tuple[Contraction, Tensor], ...]
    shape: tuple[int, ...]

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `sum_u G_i^u` in float32."""
        del d
        return functools.reduce(
            operator.add, (ops.cast(c.contributions(d_u, examples), "float32") for c, d_u in self.parts)
        )

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """From the sums, of a chunk of examples at a time."""
        return self._in_chunks(d, examples)[0]

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """The sums add up to the gradient."""
        return self._in_chunks(d, slice(None))

    def _in_chunks(self, d: Tensor, examples: slice) -> tuple[Tensor, Tensor]:
        start = 0 if examples.start is None else examples.start
        stop = static_or_dynamic_size(self.parts[0][1], 0) if examples.stop is None else examples.stop
        if not (isinstance(start, int) and isinstance(stop, int)):
            return squared_norms_and_sum(self.contributions(d, examples))
        # At most 16 chunks: the loop is in Python, because XLA has no slices of unknown size.
        chunk = max(chunk_of(4 * math.prod(self.shape)), -(-(stop - start) // 16))
        if stop - start <= chunk:
            return squared_norms_and_sum(self.contributions(d, examples))
        squares: list[Tensor] = []
        contractions, ds = zip(*self.parts, strict=True)
        total = ops.zeros(self.shape, "float32")
        for at in range(start, stop, chunk):
            ds = tuple(after(ds, total))  # one chunk in memory at a time
            parts = Added(tuple(zip(contractions, ds, strict=True)), self.shape)
            found, gradient = squared_norms_and_sum(parts.contributions(d, slice(at, min(at + chunk, stop))))
            squares.append(found)
            total += gradient
        return ops.concatenate(squares, axis=0), total
