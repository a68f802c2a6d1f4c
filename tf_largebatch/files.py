"""Writes files whole or not at all, and names the files that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tf_largebatch.check import require

TEMPORARY = ".tmp-"


class DamagedFile(ValueError):
    """A file that cannot be parsed."""


def local_path(path: str | os.PathLike[str], name: str = "path") -> pathlib.Path:
    """Returns a local path, with `~` expanded.

    Args:
        path: A path as a user writes it.
        name: Name of the argument, for the message.

    Raises:
        ValueError: If the path is an address such as `gs://bucket/run`.
    """
    text = os.fspath(path)
    require(
        # One slash too: pathlib turns gs://bucket into gs:/bucket.
        not re.match(r"[A-Za-z][\w+.-]+:/", text),
        name,
        text,
        "a path of this machine's file system",
        "write to a local directory and copy it afterwards, or mount the remote file system",
    )
    return pathlib.Path(text).expanduser()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path that becomes `path` when the block ends without an exception.

    If the process or the machine stops at any point, `path` holds its old content or its new content, never a part of
    it: the file and its directory are flushed to the disk.

    Args:
        path: The file to write. The temporary name keeps its suffix.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(directory: str | os.PathLike[str]) -> None:
    """Removes the temporary files that a killed process left in a directory."""
    for path in pathlib.Path(directory).glob(f"{TEMPORARY}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        DamagedFile: If it does not; the message names it.
    """
    with naming_damage(path):
        content = json.loads(pathlib.Path(path).read_text())
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
    return content


@contextlib.contextmanager
def naming_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the error of a block that parses a file into one sentence that names the file.

    Args:
        path: The file that the block reads.

    Raises:
        DamagedFile: If the block raises an error of a malformed file.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, csv.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise DamagedFile(f"{os.fspath(path)} is damaged ({reason}): restore the file or remove it.") from error


def _flush(path: pathlib.Path) -> None:
    """Waits until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems flush no directories.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
