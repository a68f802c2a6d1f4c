"""Dense on a sparse array of JAX: refused."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn


@dataclasses.dataclass(frozen=True)
class SparseMatMul:
    """Stands for TensorFlow's contraction of the same name."""

    a: Any

    def __post_init__(self) -> NoReturn:
        """Raises; the message that names the layer quotes this reason."""
        raise ValueError("sparse inputs are measured on TensorFlow only")
