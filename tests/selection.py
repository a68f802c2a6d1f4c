"""Which cases `make test` runs, and which only `make test-long` does.

`@pytest.mark.long` moves a test there. A test with several arguments whose combinations are many is marked
`@pytest.mark.each_value`: enough of its cases stay that each value of each argument occurs. Of a table of cases
`long_unless` keeps those that are named.

JAX takes long to compile, and most of the code is the same as on TensorFlow, where all of these tests run: of a file
that is marked `quick_on_jax` the named tests stay there.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import pytest

ON_JAX = os.environ.get("KERAS_BACKEND") == "jax"
long = functools.partial(pytest.param, marks=pytest.mark.long)


def long_unless(cases: Iterable[Any], quick: Collection[Any], condition: bool = True) -> list[Any]:
    """Parameters of which `make test` runs those in `quick`.

    Args:
        cases: values of an argument of `pytest.mark.parametrize`.
        quick: the cases that stay.
        condition: where it is false, all cases stay.
    """
    cases = list(cases)
    if not condition:
        return cases
    assert set(quick) <= set(cases), f"there are no such cases: {set(quick) - set(cases)}"
    return [pytest.param(case, marks=() if case in quick else pytest.mark.long) for case in cases]


def covering(cases: list[dict[str, Any]], last: Collection[int] = ()) -> list[int]:
    """Positions of few cases in which each value of each argument occurs, evenly often: chosen greedily.

    Args:
        cases: for each case, what tells the value of each argument from its others.
        last: positions of cases that are taken only for values that no other case has.
    """
    missing = {value for case in cases for value in case.items()}
    chosen, used = [], Counter()
    while missing:
        new = [len(missing & case.items()) for case in cases]
        known = [sum(used[value] for value in case.items()) for case in cases]
        best = max(range(len(cases)), key=lambda i: (new[i] > 0, i not in last, new[i], -known[i]))
        missing -= cases[best].items()
        used.update(cases[best].items())
        chosen.append(best)
    return sorted(chosen)


def values_of(item: pytest.Item) -> dict[str, tuple[int, ...]]:
    """For each `parametrize` of a test the identity of its values."""
    found = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        found[",".join(names)] = tuple(id(item.callspec.params[name]) for name in names)
    return found


def mark_long(items: list[pytest.Item]) -> None:
    """Marks as long what `quick_on_jax` and `each_value` leave out."""
    for item in items:
        quick = item.get_closest_marker("quick_on_jax")
        if ON_JAX and quick and not {item.name, item.originalname} & set(quick.args):
            item.add_marker(pytest.mark.long)
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("each_value") and not item.get_closest_marker("long") and hasattr(item, "callspec"):
            functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    for cases in functions.values():
        skipped = {i for i, item in enumerate(cases) if item.get_closest_marker("skipif")}
        kept = covering([values_of(item) for item in cases], skipped)
        for position, item in enumerate(cases):
            if position not in kept:
                item.add_marker(pytest.mark.long)
