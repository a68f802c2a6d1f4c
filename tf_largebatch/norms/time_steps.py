"""One time step of a stack of recurrent cells, and the axes of sequences. Backend-neutral."""

from __future__ import annotations

from typing import Any

from keras import ops

from tf_largebatch.norms.shapes import static_or_dynamic_shape


def one_step(rules: list[Any], sites: list[list[Any]], states: list[list[Any]], keep: Any) -> tuple[Any, list[Any]]:
    """Runs one time step of each cell on the output of the cell below.

    Args:
        rules: The cells' rules.
        sites: For each cell its sites at this step.
        states: For each cell its states before the step.
        keep: Which examples are not masked at this step, booleans [B]; None where there is no mask. The states of the
            others stay.

    Returns:
        For each cell its states after the step; the reset gates of the cells that emit them.
    """
    x, after, resets = None, [], []
    for rule, of_cell, before in zip(rules, sites, states, strict=True):
        x, new, reset = rule.step(of_cell, x, before)
        if keep is not None:
            new = [ops.where(aligned(keep, s), s, old) for s, old in zip(new, before, strict=True)]
        after.append(new)
        resets += [] if reset is None else [reset]
    return after, resets


def grouped(flat: list[Any], sizes: list[int]) -> list[list[Any]]:
    """Splits a flat list into lists of these sizes."""
    rest = iter(flat)
    return [[next(rest) for _ in range(size)] for size in sizes]


def time_major(t: Any) -> Any:
    """Returns [B, T, ...] as [T, B, ...], and the other way round."""
    return ops.transpose(t, [1, 0, *range(2, len(t.shape))])


def aligned(mask: Any, t: Any) -> Any:
    """Appends axes of size 1 to the mask, so that it broadcasts over t."""
    return ops.reshape(mask, [*static_or_dynamic_shape(mask), *(1,) * (len(t.shape) - len(mask.shape))])
