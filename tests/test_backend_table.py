"""Every test file runs on both backends or says why not, and docs/backends.md lists those that do not.

No backend: it reads the files.
"""

from __future__ import annotations

import backend_table
import pytest


def test_every_file_has_a_category():
    problems = []
    for path in backend_table.test_files():
        try:
            backend_table.kind_of(path)
        except ValueError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


def test_what_is_listed_exists():
    missing = [path for path in backend_table.listed() if not (backend_table.ROOT / path).exists()]
    assert not missing, f"in {' or '.join(backend_table.LISTS)}, but not there: {missing}"


def test_the_page_lists_the_files_of_one_backend():
    page = backend_table.PAGE.read_text()
    found = backend_table.filled(page, {"tests, one backend": backend_table.one_backend_table()})
    assert found == page, "docs/backends.md is out of date: run python tests/backend_table.py"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Summary. TensorFlow only: JAX has\nno replicas.\n\nMore."""', ("TensorFlow only", "JAX has no replicas")),
        ('"""JAX only: it reads HLO. And more."""', ("JAX only", "it reads HLO")),
        ('"""No backend: tests/a.py reads it."""', (backend_table.NONE, "tests/a.py reads it")),
        ('"""Summary."""', None),
    ],
)
def test_reasons_are_read_from_docstrings(text, found, tmp_path):
    (tmp_path / "test_it.py").write_text(text)
    assert backend_table.reason_in(tmp_path / "test_it.py") == found
