"""Bad input ends in the message of its table, leaves no file behind and trains nothing.

TensorFlow only: one call needs tensorflow_datasets, and what is refused does not depend on the backend.
"""

from __future__ import annotations

import functools
import pathlib
import re

import bad_input_runs
import keras
import pytest
import refusal_tables

REFUSALS = refusal_tables.refusals("bad input")


@functools.wraps(keras.Model.fit)
def no_training(*args, **kwargs):
    raise AssertionError("it trains")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("bad_input")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        bad_input_runs.make_files(made)
    return made


@pytest.fixture
def content(directory, monkeypatch):
    """Enters the directory; returns a function that lists what it holds."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("TFDS_DATA_DIR", "no sets")
    monkeypatch.setattr(keras.Model, "fit", no_training)
    return lambda: sorted((str(path), path.stat().st_mtime_ns) for path in pathlib.Path().rglob("*"))


@pytest.mark.parametrize("group", REFUSALS)
def test_bad_input_is_refused_with_its_message(group, content):
    before, wrong = content(), []
    for call, message in REFUSALS[group].items():
        try:
            found = bad_input_runs.refused(call)
        except Exception as error:  # all rows are tried, so that one failure hides no other
            found = f"{type(error).__name__}: {error}"
        if not re.fullmatch(refusal_tables.pattern(message), found) or "\n" in found:
            wrong.append(f"{call}\n  must say {message}\n  says     {found}")
    assert not wrong, "\n".join(wrong)
    assert content() == before


def test_no_reader_executes_code(content):
    """The rows whose files hold code: YAML tags, pickled arrays, a Lambda layer."""
    calls = [call for rows in REFUSALS.values() for call in rows if re.search("executes|pickled", call)]
    assert len(calls) >= 6
    for call in calls:
        bad_input_runs.refused(call)
    assert not pathlib.Path(bad_input_runs.EXECUTED).exists()


@pytest.mark.parametrize("name", ["executes.yaml", "pickled.npz", "executes.keras"])
def test_the_files_execute_code_where_a_reader_allows_it(name, content):
    bad_input_runs.read_unsafely(name)
    executed = pathlib.Path(bad_input_runs.EXECUTED)
    assert executed.exists()
    executed.unlink()


def test_there_are_150_rows_and_the_page_holds_them():
    assert sum(len(rows) for rows in REFUSALS.values()) >= 150
    page = refusal_tables.PAGE.read_text()
    assert refusal_tables.filled(page) == page, "docs/reliability.md is out of date: run python tests/refusal_tables.py"
