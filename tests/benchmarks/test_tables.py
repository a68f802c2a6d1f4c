"""The tables of the pages are those of the reports and studies; the harness and the rows of layers hold together.

TensorFlow only: benchmarks/norms.py times its steps. test_gpu.py and test_jax_forms.py test the benchmarks of JAX.
"""

from __future__ import annotations

import math

import pytest

from benchmarks import harness, tables
from benchmarks.layer_cases import layer_cases
from benchmarks.norms import build_layer_step


@pytest.mark.parametrize("page", tables.PAGES)
def test_pages_have_the_tables_of_the_reports(page):
    text = (tables.ROOT / page).read_text()
    assert tables.filled(page) == text, "run `python -m benchmarks.tables`"
    for name in tables.PAGES[page]:
        assert text.count(f"<!-- table: {name} -->") == 1


def test_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in ("one", "other")}
    times = harness.interleaved(programs, rounds=2)
    assert calls == ["one", "other"] * 3  # the first round is not kept
    assert [len(some) for some in times.values()] == [2, 2]


def test_spread_and_ratios():
    assert harness.median_and_quartiles("ratio", [1.0, 2.0, 3.0]) == {"ratio": 2.0, "ratio_quartiles": [1.5, 2.5]}
    assert harness.median_and_quartiles("ratio", [4.0]) == {"ratio": 4.0, "ratio_quartiles": [4.0, 4.0]}
    assert harness.ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]


def test_reports_round_trip(tmp_path):
    assert harness.read_report(None) == harness.read_report(tmp_path / "none.json") == {}
    harness.write_report(tmp_path / "new" / "report.json", {"cases": {}})
    assert harness.read_report(tmp_path / "new" / "report.json") == {"cases": {}}
    harness.write_report(None, {})


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in layer_cases() if name != "Conv2D, groups"])
def test_every_row_of_layers_runs(name):
    for measured in (False, True):
        step = build_layer_step(layer_cases()[name], measured)
        assert math.isfinite(float(harness.seconds(step)))
