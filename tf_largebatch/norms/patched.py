"""Attributes of a layer patched for the length of one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def patched(layer: Any, **values: Any) -> Iterator[None]:
    """Within it the layer has these attributes, past Keras's tracking, which would take them for new state."""
    missing = object()
    saved = {name: vars(layer).get(name, missing) for name in values}
    try:
        for name, value in values.items():
            object.__setattr__(layer, name, value)
        yield
    finally:
        for name, value in saved.items():
            if value is missing:
                vars(layer).pop(name, None)
            else:
                object.__setattr__(layer, name, value)
