"""Long runs grow no memory, trace nothing again, take no longer per step, and have finite rates.

`make test` runs the checks on made-up rows, `make test-long` a tenth of the steps of one model and all steps of both.
"""

from __future__ import annotations

import statistics

import long_run
import numpy as np
import pytest
from selection import long

STEPS = 20_000


# pytest keeps every warning, of which NumPy gives one an epoch.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "steps"), [long("large_batch", STEPS // 10), *(long(kind, STEPS) for kind in long_run.MODELS)]
)
def test_a_long_run(kind, steps):
    rows = long_run.run(kind, steps)
    assert rows[-1]["step"] == steps
    long_run.check(rows)


def made_up(**columns):
    """Rows of a run that is as it should be, but for these columns, functions of the position from 0 to 1."""
    noise = np.random.default_rng(0).normal(size=200)
    rows = []
    for k in range(200):
        row = {"step": 100 * (k + 1), "resident_mb": 800 + 0.05 * noise[k], "objects": 400_000 + k % 3, "traces": 9}
        row |= {"compilations": 0, "cpu_ms": 4 + 0.1 * noise[k], "lowest_rate": 0.1, "highest_rate": 1.0, "loss": 0.5}
        rows.append(row | {name: function(k / 200) for name, function in columns.items()})
    return rows


@pytest.mark.parametrize(
    ("column", "function", "message"),
    [
        ("resident_mb", lambda t: 800 + 30 * t, "memory grows by"),
        ("objects", lambda t: 400_000 + 2_000 * t, "objects grow by"),
        ("traces", lambda t: 9 + (t > 0.5), "traced again"),
        ("compilations", lambda t: t > 0.9, "compiled again"),
        ("cpu_ms", lambda t: 4 + 6 * t, "a step takes"),
        ("lowest_rate", lambda t: float("nan") if t > 0.7 else 0.1, "not finite"),
        ("loss", lambda t: float("inf") if t > 0.7 else 0.1, "not finite"),
    ],
)
def test_what_is_wrong_is_seen(column, function, message):
    long_run.check(made_up())
    with pytest.raises(AssertionError, match=message):
        long_run.check(made_up(**{column: function}))


def test_the_page_holds_the_published_runs():
    page = long_run.PAGE.read_text()
    assert long_run.filled(page) == page, "run python tests/reliability/long_run.py --publish"
    for path in long_run.RESULTS.glob("*.csv"):
        rows = long_run.read(path)
        assert rows[-1]["step"] == STEPS
        long_run.check(rows)
        assert statistics.median(row["cpu_ms"] for row in rows) > 0
