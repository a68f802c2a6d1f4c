"""A layer with some attributes replaced, for the length of one call, without changing the layer."""

from __future__ import annotations

from typing import Any


def view(layer: Any, **values: Any) -> Any:
    """Returns a shallow copy of the layer with these attributes.

    It shares all variables and sublayers with the layer, which stays as it is: another thread may be in the middle of
    it. `type(layer).call(view(layer, scale=...), x)` runs the layer's own code with another `scale`.
    """
    copy = object.__new__(type(layer))
    # Past Keras's tracking, which would take the values for a new state.
    vars(copy).update(vars(layer))
    vars(copy).update(values)
    return copy
