"""JAX has no replicas: one program computes on global arrays, so there is one value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class ReplicaLocal:
    """Holds one value inside a `with` block; a tracer too, if the block is within one trace."""

    def __init__(self) -> None:
        self._value: Any = None

    @contextlib.contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Makes `value` the one that is held inside the `with` block."""
        previous, self._value = self._value, value
        try:
            yield
        finally:
            self._value = previous

    def get(self) -> Any:
        """Returns the value that is held, or None."""
        return self._value
