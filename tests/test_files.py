"""Files are written whole or not at all, and damaged files are named."""

from __future__ import annotations

import os
import pathlib

import pytest

from tf_largebatch import files
from tf_largebatch.files import local_path, read_json, replacing, sweep, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_and_its_directory_are_flushed_before_and_after_the_replacement(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(files.os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    monkeypatch.setattr(files.os, "fsync", lambda d: (calls.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    write_json(tmp_path / "a.json", {"a": 1})
    assert calls[0].endswith("-a.json") and calls[1:] == ["replace", str(tmp_path)]
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_what_a_killed_write_left_is_swept(tmp_path):
    (tmp_path / f"{files.TEMPORARY}12-a.json").write_text("{")
    (tmp_path / "a.json").write_text("{}")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_json_file_is_named(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged \(.+\): restore the file or remove it\.") as raised:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b", "file:///tmp/x", pathlib.Path("gs://bucket") / "x"])
def test_addresses_are_refused(path):
    with pytest.raises(
        ValueError, match="output_dir must be a path of this machine's file system; received output_dir="
    ):
        local_path(path, "output_dir")


@pytest.mark.parametrize("path", ["run", "C:/run", "a/b:c", "x:y", pathlib.Path("/a/gs:")])
def test_local_paths_are_not(path):
    assert local_path(path) == pathlib.Path(path)


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json("~/runs/a.json", {})
    assert (tmp_path / "runs" / "a.json").exists()
