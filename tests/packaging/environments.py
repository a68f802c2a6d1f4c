"""Clean environments of several Pythons, and the file of what was found in them.

`release_check.py` and `matrix.py` share this. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
REPORTS = pathlib.Path(__file__).with_name("reports")
PYTHONS = ("3.10", "3.11", "3.12")
LICENCES = pathlib.Path(__file__).with_name("licences.py")
# What decides how the package behaves.
NAMED = ("tensorflow", "jax", "keras", "tf-keras", "tf-models-official", "numpy")


class CommandError(Exception):
    """A command failed; the text is the line of its output that says why."""


def attempt(
    *command: object, backend: str | None = None, cwd: pathlib.Path | None = None, timeout: float = 3600
) -> tuple[int, str]:
    """Runs a command without the caller's packages on its path; returns its exit status and all that it printed.

    Raises:
        CommandError: If it takes longer than `timeout` seconds.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    if backend is not None:
        environment["KERAS_BACKEND"] = backend
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": cwd, "env": environment}
    try:
        found = subprocess.run([*map(str, command)], check=False, timeout=timeout, **options)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{command[0]} took longer than {timeout:.0f} s") from error
    return found.returncode, found.stdout


def run(*command: object, backend: str | None = None, cwd: pathlib.Path | None = None) -> str:
    """Runs a command and returns what it prints.

    Raises:
        CommandError: If the command fails.
    """
    status, printed = attempt(*command, backend=backend, cwd=cwd)
    if status != 0:
        raise CommandError(reason(printed))
    return printed


def reason(output: str) -> str:
    """The line that says why a command failed: pip's last error, or the last line of all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ") and "Ignored the following" not in line]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR: ")[:300]


def interpreter(python: str) -> str | None:
    """The path of a Python such as "3.12", or None where it is not installed."""
    name = shutil.which(f"python{python}")
    if name is None:
        return None
    with contextlib.suppress(CommandError):
        return run(name, "-c", "import sys; print(sys.executable)").splitlines()[-1]
    return None


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment in a directory that is deleted when it is done."""

    directory: pathlib.Path

    @property
    def python(self) -> pathlib.Path:
        return self.directory / "venv" / "bin" / "python"

    def install(self, *requirements: str) -> None:
        # Compiling all of TensorFlow's modules takes longer than the tests.
        run(self.python, "-m", "pip", "install", "--quiet", "--no-compile", *requirements)

    def run(self, *arguments: object, backend: str | None = None) -> str:
        """Runs the environment's Python in an empty directory outside the checkout."""
        (self.directory / "work").mkdir(exist_ok=True)
        return run(self.python, *arguments, backend=backend, cwd=self.directory / "work")

    def packages(self, *extras: str) -> dict[str, dict[str, Any]]:
        """What is installed with these extras: see `licences.py`."""
        return json.loads(self.run(LICENCES, *extras).splitlines()[-1])


@contextlib.contextmanager
def clean_environment(python: str) -> Iterator[Environment]:
    """A new environment of a Python such as "3.12" with the newest pip and nothing else.

    Raises:
        CommandError: If the Python is not installed, or pip cannot be upgraded.
    """
    found = interpreter(python)
    if found is None:
        raise CommandError(f"python{python} is not on the path")
    with tempfile.TemporaryDirectory(prefix="clean_environment_") as directory:
        environment = Environment(pathlib.Path(directory))
        run(found, "-m", "venv", environment.directory / "venv")
        environment.install("--upgrade", "pip")
        yield environment


def versions(packages: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The versions of those packages that decide how this one behaves."""
    return {name: packages[name]["version"] for name in NAMED if name in packages}


def write_table(name: str, table: str) -> None:
    """Writes a table of docs/reliability.md between the comments that name it."""
    pattern = rf"(<!-- table: {re.escape(name)} -->)\n.*?(<!-- end -->)"
    PAGE.write_text(
        re.sub(pattern, lambda found: f"{found[1]}\n{table}\n{found[2]}", PAGE.read_text(), flags=re.DOTALL)
    )


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Records:
    """A file with one JSON object a line: what was found under a key. A later line replaces an earlier one."""

    def __init__(self, path: pathlib.Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, keys

    def read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        records = [json.loads(line) for line in lines]
        return list({tuple(record[key] for key in self.keys): record for record in records}.values())

    def add(self, **record: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps({name: value for name, value in record.items() if name != "packages"}), flush=True)

    def check(self, work: Callable[[], dict[str, Any]], again: bool = False, **key: Any) -> None:
        """Does the work and records what it returns, unless the file has a record with this key.

        Args:
            work: returns the rest of the record. If it raises `CommandError`, the record has the result "fails" and
                the reason.
            again: does it even if there is a record.
            key: the values of `keys`.
        """
        if not again and any(all(record[name] == value for name, value in key.items()) for record in self.read()):
            return
        start = time.monotonic()
        try:
            found = work()
        except CommandError as error:
            found = {"result": "fails", "reason": str(error)}
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        self.add(**key, **found, date=date, seconds=round(time.monotonic() - start))
