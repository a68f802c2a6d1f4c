"""Builds the wheel and the source distribution, with the same bytes wherever and whenever they are built.

python tests/packaging/build_distributions.py DIRECTORY

The time of every file is SOURCE_DATE_EPOCH, or that of the last commit. setuptools writes that time into the wheel, but
not into the source distribution, and writes the builder's permissions, user and group into them: all are replaced here.
What is left: the wheel names the version of setuptools that made it, and another zlib may compress otherwise.
"""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).parents[2]
# The first second that a zip file can hold: 1980-01-01.
EARLIEST = 315532800


def source_date(source: pathlib.Path) -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit, else the earliest that a wheel can hold; Unix seconds."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return max(EARLIEST, int(os.environ["SOURCE_DATE_EPOCH"]))
    command = ["git", "-C", str(source), "log", "-1", "--format=%ct"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(found.stdout) if found.returncode == 0 else EARLIEST


def normalized_wheel(path: pathlib.Path, date: int) -> bytes:
    """The wheel with its files in order of their names, readable by all and of one date."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in sorted(old.infolist(), key=lambda entry: entry.filename):
            made = zipfile.ZipInfo(entry.filename, time.gmtime(date)[:6])
            made.external_attr, made.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            new.writestr(made, old.read(entry))
    return written.getvalue()


def normalized_sdist(path: pathlib.Path, date: int) -> bytes:
    """The source distribution with its files in order of their names, of one date and of no user."""
    written = io.BytesIO()
    with (
        tarfile.open(path) as old,
        gzip.GzipFile(filename="", mode="wb", fileobj=written, mtime=date) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            made = tarfile.TarInfo(entry.name)
            made.mtime, made.type, made.size = date, entry.type, entry.size
            made.mode = 0o755 if entry.isdir() else 0o644
            new.addfile(made, old.extractfile(entry) if entry.isfile() else None)
    return written.getvalue()


def build(source: pathlib.Path, directory: pathlib.Path, *options: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Builds both and returns their paths.

    Args:
        source: the checkout. Building leaves files there.
        directory: where the two files go; it is created.
        options: of `python -m build`.

    Raises:
        RuntimeError: If the build fails; the message is what it printed.
    """
    date = source_date(source)
    with tempfile.TemporaryDirectory() as built:
        command = [sys.executable, "-m", "build", *options, "--outdir", built, str(source)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(date)}
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if found.returncode != 0:
            raise RuntimeError(found.stdout + found.stderr)
        (wheel,), (sdist,) = pathlib.Path(built).glob("*.whl"), pathlib.Path(built).glob("*.tar.gz")
        made = {wheel.name: normalized_wheel(wheel, date), sdist.name: normalized_sdist(sdist, date)}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (directory / name).write_bytes(content)
    return directory / wheel.name, directory / sdist.name


if __name__ == "__main__":
    print(*build(ROOT, pathlib.Path(sys.argv[1])), sep="\n")
