"""The tables of the published studies are those of their runs.

No backend: it reads results/.
"""

from __future__ import annotations

import pathlib

import pytest

from tf_largebatch.study.config import read_study
from tf_largebatch.study.report import markdown
from tf_largebatch.study.runner import read_rows

RESULTS = pathlib.Path(__file__).parents[2] / "results"
STUDIES = sorted(path.parent.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("study.yaml"))


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_is_that_of_the_runs(name):
    directory = RESULTS / name
    expected = markdown(read_study(directory / "study.yaml"), read_rows(directory / "runs.jsonl"))
    found = (directory / "table.md").read_text()
    assert found == expected, (
        "the table is stale: call study.report.write_report with the study, its runs and the directory"
    )
