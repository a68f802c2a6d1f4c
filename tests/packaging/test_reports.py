"""What was found with other Pythons and versions, as the pages say it.

No backend: it reads the reports of release_check.py and matrix.py.
"""

from __future__ import annotations

import re

import matrix
import pytest
import release_check
from environments import PAGE, PYTHONS, ROOT

SETUP = (ROOT / "setup.py").read_text()
CHECKED = release_check.RECORDS.read()
# Licences that ask for the source of what is distributed together with a package.
DEMANDING = re.compile(r"\b[AL]?GPL|GNU", re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("release check", lambda: release_check.table(CHECKED)),
        ("licences", lambda: release_check.licence_table(CHECKED)),
        ("versions", lambda: matrix.table(matrix.RECORDS.read())),
    ],
)
def test_the_page_has_the_tables_of_the_reports(name, made):
    assert f"<!-- table: {name} -->\n{made()}\n<!-- end -->" in PAGE.read_text()


def test_every_python_and_every_extra_is_checked():
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', SETUP) == [*PYTHONS]
    extras = set(re.findall(r'^        "(\w+)": ', SETUP, re.MULTILINE))
    assert {*release_check.TRIALS, *release_check.RESOLVED} == extras | {""}
    assert len({record["wheel"] for record in CHECKED}) == 1, "all checks are of one wheel"


def test_what_is_promised_works():
    """TensorFlow and Model Garden with every Python; JAX from 3.11 on, which pip demands and the pages say."""
    found = {(record["extra"], record["python"]): record["result"] for record in CHECKED}
    promised = [(extra, python) for extra in ("", "tensorflow", "garden") for python in PYTHONS]
    promised += [("jax", python) for python in PYTHONS if python != "3.10"]
    assert {found[case] for case in promised} == {"works"}
    assert found["jax", "3.10"] == "cannot be installed"
    assert "Python 3.11" in (ROOT / "docs" / "getting_started.md").read_text()


def test_no_licence_makes_demands_on_what_is_distributed():
    packages = {name: package for record in CHECKED for name, package in record.get("packages", {}).items()}
    assert len(packages) > 60
    # It may be used under the Artistic License instead.
    assert {name for name, package in packages.items() if DEMANDING.search(package["licence"])} <= {"text-unidecode"}
    # Keras's own; the page says so.
    assert {name for name, package in packages.items() if package["licence"] == "not stated"} <= {"namex"}


def test_the_quick_selection_exists():
    assert all((ROOT / path).exists() for path in (*matrix.QUICK, *matrix.QUICK_ON_JAX))


def test_failed_tests_are_counted(monkeypatch):
    printed = "FAILED tests/a.py::b - no\nERROR tests/c.py\n1 failed, 2,000 passed, 3 skipped, 1 error in 9.1s"
    monkeypatch.setattr(matrix, "attempt", lambda *arguments, **options: (1, printed.replace(",000", "000")))

    class Nothing:
        python = "python"

    found = matrix.counted(Nothing(), "jax")
    assert found == {"passed": 2000, "failed": 2, "skipped": 3, "failures": ["tests/a.py::b", "tests/c.py"]}
