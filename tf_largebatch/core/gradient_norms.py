"""The gradient norms of all tensors of a model, packed into one vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops


@dataclasses.dataclass(frozen=True)
class GradientNorms:
    """One gradient norm for each of K trainable tensors, in the model's order: what CLARS divides by.

    They add up over examples, replicas and micro-batches as `values` do, and scale with a loss scale.

    Attributes:
        values: The norms `s_k`, shape [K], float32; 0 where the norm is not known.
        known: For each tensor whether its norm is known. A norm is not known where the loss does not depend on the
            tensor.
    """

    values: Any
    known: tuple[bool, ...]

    @classmethod
    def pack(cls, norms: Sequence[Any]) -> GradientNorms:
        """Packs K scalar norms, None for one that is not known.

        Args:
            norms: Scalars of any floating dtype, or None.

        Returns:
            The packed norms, float32.
        """
        zero = ops.zeros((), "float32")
        values = [zero if norm is None else ops.cast(norm, "float32") for norm in norms]
        packed = ops.stack(values) if values else ops.zeros((0,), "float32")
        return cls(packed, tuple(norm is not None for norm in norms))

    def unpack(self) -> list[Any]:
        """Returns the K norms as float32 scalars, None for those that are not known."""
        if not self.known:
            return []
        return [norm if known else None for norm, known in zip(ops.unstack(self.values), self.known, strict=True)]
