"""Where code runs: within a step that is being traced, or outside of it."""

from __future__ import annotations

import contextlib
from typing import Any

import jax


def named(name: str) -> contextlib.AbstractContextManager[Any]:
    """Within it operations get this name, which profiles and HLO show."""
    return jax.named_scope(name)


def outside_of_the_step(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Within it variables are created and written at once. On JAX this holds wherever no `StatelessScope` is open."""
    del model
    return contextlib.nullcontext()


def of_one_replica(model: Any, data: Any) -> Any:
    """Returns the batch: on JAX one program sees all of it."""
    del model
    return data
