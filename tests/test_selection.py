"""The cases that `make test` leaves out.

No backend: it chooses among names.
"""

from __future__ import annotations

import pytest
from selection import covering, long_unless


def test_each_value_of_each_argument_occurs_in_few_cases():
    product = [{"a": a, "b": b, "c": c} for c in range(2) for b in range(4) for a in range(3)]
    chosen = [product[i] for i in covering(product)]
    assert len(chosen) == 4
    assert {pair for case in product for pair in case.items()} == {pair for case in chosen for pair in case.items()}
    assert covering([{"a": 0}, {"a": 1}]) == [0, 1]
    even = covering([{"a": a, "b": b} for a in range(4) for b in range(2)])
    assert sorted(i % 2 for i in even) == [0, 0, 1, 1]
    assert covering([{"a": 0, "b": 0}, {"a": 0}, {"a": 1}], last={0}) == [0, 1, 2]
    assert covering([{"a": 0, "b": 0}, {"a": 0, "b": 0}], last={0}) == [1]


def test_the_named_cases_of_a_table_stay():
    kept = [p.values[0] for p in long_unless(["a", "b", "c"], ["b"]) if not p.marks]
    assert kept == ["b"] and long_unless("ab", [], condition=False) == ["a", "b"]
    with pytest.raises(AssertionError, match="no such cases"):
        long_unless(["a"], ["b"])
